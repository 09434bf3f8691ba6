"""The Stripe replica as a program of its own, and a receiver of its webhooks."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parents[1]
SECRET = "whsec_test"


class Receiver:
    """An application that takes webhooks and answers `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers), body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def events(self, customer: str) -> list[dict[str, Any]]:
        """What was received about a customer, in order of arrival."""
        received = [json.loads(body) for _, body in list(self.requests)]
        return [event for event in received if customer in json.dumps(event["data"]["object"])]


class Replica:
    """A running replica; `stop` and `start` restart it over its data."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder = folder
        self.receiver = receiver
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        """Until it answers."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE.parent / ".local" / "tools" / "stripe-world"),
            "STRIPE_WEBHOOK_URL": self.receiver.url,
            "STRIPE_WEBHOOK_SECRET": SECRET,
        }
        command = [sys.executable, "-m", "servers.stripe", self.url.rsplit(":", 1)[1], str(self.folder)]
        self.process = subprocess.Popen(command, cwd=HERE, env=environment)

        def answers() -> bool:
            try:
                return self.get("/health")["status"] == "ok"
            except OSError:
                return False

        eventually(answers, 60)

    def stop(self, *, kill: bool = False) -> None:
        """End it, politely or not."""
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(10)

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a page."""
        return self.send("GET", f"{path}?{urlencode(query)}" if query else path)[1]

    def post(self, path: str, headers: dict[str, str] | None = None, /, **form: Any) -> Any:
        """The object that a form makes; a refusal fails the test."""
        status, body = self.send("POST", path, urlencode(form).encode(), headers or {})
        assert status == 200, body
        return body

    def refused(self, path: str, headers: dict[str, str] | None = None, /, **form: Any) -> tuple[int, Any]:
        """The status and the error of a request that is to fail."""
        status, body = self.send("POST", path, urlencode(form).encode(), headers or {})
        assert status >= 400, body
        return status, body["error"]

    def control(self, path: str, **body: Any) -> Any:
        """One of the replica's own routes."""
        status, answer = self.send("POST", f"/_replica/{path}", json.dumps(body).encode())
        assert status == 200, answer
        return answer

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, Any]:
        """One request."""
        headers = {"Authorization": "Bearer sk_test_local", **(headers or {})}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def customer(self, method: str | None = "pm_card_visa") -> str:
        """A customer who pays by that card."""
        customer = self.post("/v1/customers", email="a@example.com")["id"]
        if method:
            attached = self.post(f"/v1/payment_methods/{method}/attach", customer=customer)["id"]
            self.post(f"/v1/customers/{customer}", **{"invoice_settings[default_payment_method]": attached})
        return customer

    def price(self, amount: int = 2999) -> str:
        """A monthly price."""
        form = {"currency": "usd", "unit_amount": amount, "recurring[interval]": "month", "product_data[name]": "Pro"}
        return self.post("/v1/prices", **form)["id"]

    def subscribe(self, customer: str, price: str, **form: Any) -> dict[str, Any]:
        """A subscription to that price."""
        return self.post("/v1/subscriptions", customer=customer, **{"items[0][price]": price}, **form)


def eventually(check: Callable[[], Any], seconds: float = 20) -> Any:
    """What the check gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found
