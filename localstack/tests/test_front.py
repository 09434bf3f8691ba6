"""Replies on their way through the front and cargo-lambda's router, from a function that the tests play."""

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

import front
import functions
import services
import settings
import tools
from cloudformation import Route

NAME = "items-read"
PREFIX = f"/.rt/{NAME}/2018-06-01/runtime/invocation"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[settings.Profile]:
    """The front and the router on ports of the test's own."""
    monkeypatch.setattr(settings, "PORTS", {name: _free_port() for name in ("router", "runtime", "replies")})
    monkeypatch.delenv("PORT_OFFSET", raising=False)
    profile = settings.Profile("front", "front", 0)
    (tmp_path / "Cargo.toml").write_text(functions.router_manifest([Route("GET", "/items", NAME)]))
    (tmp_path / "main.rs").write_text("fn main() {}\n")
    (tmp_path / "haproxy.cfg").write_text(front.configuration(profile))
    router = [settings.VENV / "bin" / "cargo-lambda", "lambda", "watch", "--only-lambda-apis", "--disable-cors"]
    router += ["--invoke-address", "127.0.0.1", "--invoke-port", str(profile.port("runtime"))]
    programs = [router, [tools.haproxy(), "-db", "-f", "haproxy.cfg"]]
    with (tmp_path / "log").open("w") as log:
        started = [subprocess.Popen(program, cwd=tmp_path, stdout=log, stderr=log) for program in programs]
    try:
        services.wait_for(lambda: all(map(services.listens, settings.PORTS.values())), 30, "the front does not start")
        yield profile
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_reply_that_is_answered_before_its_end_arrives(profile):
    length = 5_000_000
    body = _reply("x" * length)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(_length_of_items, profile)
        function = HTTPConnection("127.0.0.1", profile.port("replies"), timeout=10)
        request = _next(function)
        function.putrequest("POST", f"{PREFIX}/{request}/response")
        function.putheader("Content-Length", str(len(body)))
        function.endheaders(body[:-1000])
        function.sock.settimeout(10)
        assert function.sock.recv(1024, socket.MSG_PEEK).startswith(b"HTTP/1.1 200")
        function.send(body[-1000:])
        # Nothing follows on this connection.
        assert asked.result() == length


def test_a_request_goes_past_a_process_that_is_gone(profile):
    gone = HTTPConnection("127.0.0.1", profile.port("replies"))
    gone.request("GET", f"{PREFIX}/next")
    time.sleep(0.2)
    gone.close()
    time.sleep(0.2)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(_length_of_items, profile)
        function = HTTPConnection("127.0.0.1", profile.port("replies"), timeout=10)
        request = _next(function)
        function.request("POST", f"{PREFIX}/{request}/response", _reply("here"))
        assert function.getresponse().status == 200
        assert asked.result() == len("here")


def _reply(body: str) -> bytes:
    head = {"statusCode": 200, "headers": {}, "multiValueHeaders": {}, "cookies": [], "isBase64Encoded": False}
    return json.dumps({**head, "body": body}).encode()


def _length_of_items(profile: settings.Profile) -> int:
    with urllib.request.urlopen(f"{profile.url('router')}/items", timeout=10) as answer:
        return len(answer.read())


def _next(function: HTTPConnection) -> str:
    """The id of the next request."""
    function.request("GET", f"{PREFIX}/next")
    answer = function.getresponse()
    answer.read()
    return answer.headers["lambda-runtime-aws-request-id"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
