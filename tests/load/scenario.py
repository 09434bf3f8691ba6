"""What users and an admin do, for Locust: sign in once, then me, lists, chat both ways, and figures."""

from __future__ import annotations

import os
import uuid

from locust import FastHttpUser, constant, events, task

PASSWORD = "correct horse battery"
# Too fast, out of tokens: answers by design, counted by a name of their own.
BY_DESIGN = 429


class Client(FastHttpUser):
    """Sends as fast as the answers come."""

    abstract = True
    wait_time = constant(0)
    connection_timeout = 10
    network_timeout = 30
    token = ""

    def send(self, method: str, path: str, name: str, expected: int = 200, body: dict | None = None):
        """One request; any other status than the expected one and 429 is an error."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        with self.client.request(
            method, path, name=name, json=body, headers=headers, catch_response=True, allow_redirects=False
        ) as reply:
            if reply.status_code == BY_DESIGN:
                reply.request_meta["name"] = f"{name} (429)"
                reply.success()
            elif reply.status_code != expected:
                reply.failure(f"{reply.status_code} {(reply.text or '')[:200]}")
            else:
                reply.success()
            return reply

    def sign_in(self, email: str, password: str) -> None:
        reply = self.send("POST", "/api/auth/signin", "sign in", body={"email": email, "password": password})
        self.token = reply.json()["token"]


class Person(Client):
    """Someone who chats."""

    weight = 9

    def on_start(self) -> None:
        self.email = f"load-{uuid.uuid4()}@example.com"
        body = {"email": self.email, "password": PASSWORD}
        self.token = self.send("POST", "/api/auth/signup", "sign up", 201, body).json()["token"]

    @task(20)
    def me(self) -> None:
        self.send("GET", "/api/auth/me", "me")

    @task(10)
    def conversations(self) -> None:
        self.send("GET", "/api/chat/conversations?limit=20", "list conversations")

    @task(3)
    def chat(self) -> None:
        self.send("POST", "/api/chat", "chat, buffered", body={"message": "Hello"})

    @task(3)
    def stream(self) -> None:
        reply = self.send("POST", "/api/chat", "chat, streamed", body={"message": "Hello", "stream": True})
        if reply.status_code == 200 and "event: done" not in reply.text:
            events.request.fire(
                request_type="SSE",
                name="chat, streamed",
                response_time=0,
                response_length=0,
                exception=ValueError(f"no end: {reply.text[-200:]}"),
            )

    @task(1)
    def sign_in_again(self) -> None:
        self.sign_in(self.email, PASSWORD)


class Admin(Client):
    """Someone who reads the figures."""

    weight = 1

    def on_start(self) -> None:
        self.sign_in(os.environ["ADMIN_EMAIL"], os.environ["ADMIN_PASSWORD"])

    @task
    def activity(self) -> None:
        self.send("GET", "/api/analytics/chat/activity", "analytics: activity")

    @task
    def growth(self) -> None:
        self.send("GET", "/api/analytics/users/growth", "analytics: growth")


@events.quitting.add_listener
def report(environment, **_: object) -> None:
    """A line a route, and the exit code."""
    print(f"\n{'route':28}{'requests':>10}{'errors':>8}{'per s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    total = environment.stats.total
    rows = sorted(environment.stats.entries.values(), key=lambda entry: entry.name)
    for entry in [*rows, total]:
        p50, p95, p99 = (entry.get_response_time_percentile(part) or 0 for part in (0.5, 0.95, 0.99))
        figures = f"{entry.total_rps:9.1f}{p50:9.0f}{p95:9.0f}{p99:9.0f}"
        print(f"{entry.name:28}{entry.num_requests:10}{entry.num_failures:8}{figures}")
    for failure in environment.stats.errors.values():
        print(f"{failure.occurrences} x {failure.name}: {failure.error}")
    environment.process_exit_code = 1 if total.num_failures or not total.num_requests else 0
