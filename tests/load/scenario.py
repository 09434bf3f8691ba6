"""What users and an admin do, for Locust: sign up, sign in, read and write conversations, chat both ways, see figures.

A user may ask 100 times a minute. So that the limit does not decide what is measured, each request is of the user
who has waited longest, and somebody new signs up when all have asked within the last moments. Behind port 4000, where
one proxy is trusted, each of them has an address too.
"""

from __future__ import annotations

import collections
import os
import time
import uuid

from locust import FastHttpUser, constant, constant_throughput, events, task

PASSWORD = "correct horse battery"
# Too fast, out of tokens: answers by design, counted by a name of their own.
BY_DESIGN = 429
# Seconds between two requests of one user: 80 a minute.
PAUSE = 0.75
# Where accounts are made: a door that believes addresses, if the one under load does not.
ACCOUNTS_URL = os.environ.get("ACCOUNTS_URL", "")
# Whether the door under load believes addresses; elsewhere all sign-ins together are of one client.
SPREAD = os.environ.get("SPREAD") == "1"
FIGURES = (
    "users/growth",
    "users/active",
    "users/retention",
    "chat/activity",
    "chat/by-model",
    "revenue/mrr",
    "providers/performance",
    "providers/usage-over-time",
)


class Account:
    """Someone with a session, an address, and perhaps a conversation."""

    def __init__(self, number: int) -> None:
        self.email = f"load-{uuid.uuid4()}@example.com"
        self.address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        self.token = ""
        self.conversation = ""
        self.free_at = 0.0


class Accounts:
    """Everybody there is, whoever waited longest first."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Account] = collections.deque()
        self.made = 0

    def next(self) -> Account | None:
        """Who may ask now; nobody when all have asked lately."""
        if not self.waiting or self.waiting[0].free_at > time.monotonic():
            return None
        return self.waiting.popleft()

    def new(self) -> Account:
        self.made += 1
        return Account(self.made)

    def put_back(self, account: Account) -> None:
        account.free_at = time.monotonic() + PAUSE
        self.waiting.append(account)


class Pace:
    """So many of something a minute and no more."""

    def __init__(self, a_minute: int) -> None:
        self.pause = 60 / a_minute
        self.next_at = 0.0

    def allows(self) -> bool:
        now = time.monotonic()
        if now < self.next_at:
            return False
        self.next_at = now + self.pause
        return True


ACCOUNTS = Accounts()
# Sign-ins are of an address, and there is but one.
SIGN_INS = Pace(80)


class Client(FastHttpUser):
    """Sends as fast as the answers come."""

    abstract = True
    wait_time = constant(0)
    connection_timeout = 10
    network_timeout = 30

    def send(self, method: str, path: str, name: str, account: Account, expected: int = 200, body: dict | None = None):
        """One request; any other status than the expected one and 429 is an error."""
        headers = {"x-forwarded-for": account.address}
        if account.token:
            headers["authorization"] = f"Bearer {account.token}"
        with self.client.request(
            method, path, name=name, json=body, headers=headers, catch_response=True, allow_redirects=False
        ) as reply:
            if reply.status_code == BY_DESIGN:
                reply.request_meta["name"] = f"{name} (429)"
                reply.success()
            elif reply.status_code != expected:
                reply.failure(f"{reply.status_code} {(reply.text or '')[:300]}")
            else:
                reply.success()
            return reply


class Person(Client):
    """One connection that many people share."""

    def someone(self) -> Account | None:
        """Who asks next; somebody new where nobody is free."""
        account = ACCOUNTS.next()
        if account is None:
            account = ACCOUNTS.new()
            body = {"email": account.email, "password": PASSWORD}
            reply = self.send("POST", f"{ACCOUNTS_URL}/api/auth/signup", "POST /api/auth/signup", account, 201, body)
            if reply.status_code != 201:
                return None
            account.token = reply.json()["token"]
        return account

    def ask(self, method: str, path: str, name: str, expected: int = 200, body: dict | None = None):
        """One request of somebody; the reply and who asked, if somebody could.

        Whoever has no conversation yet asks for their sessions instead.
        """
        account = self.someone()
        if account is None:
            return None, None
        try:
            if "{id}" in path and not account.conversation:
                path = name = "/api/auth/sessions"
            path = path.replace("{id}", account.conversation)
            return self.send(method, path, f"{method} {name}", account, expected, body), account
        finally:
            ACCOUNTS.put_back(account)

    @task(20)
    def me(self) -> None:
        self.ask("GET", "/api/auth/me", "/api/auth/me")

    @task(8)
    def conversations(self) -> None:
        self.ask("GET", "/api/chat/conversations?limit=20", "/api/chat/conversations")

    @task(2)
    def usage(self) -> None:
        self.ask("GET", "/api/chat/usage", "/api/chat/usage")

    @task(1)
    def models(self) -> None:
        self.ask("GET", "/api/chat/models", "/api/chat/models")

    @task(1)
    def subscriptions(self) -> None:
        self.ask("GET", "/api/billing/subscriptions", "/api/billing/subscriptions")

    @task(3)
    def chat(self) -> None:
        reply, account = self.ask("POST", "/api/chat", "/api/chat", body={"message": "Hello"})
        if reply is not None and reply.status_code == 200:
            account.conversation = reply.json()["conversationId"]

    @task(4)
    def conversation(self) -> None:
        self.ask("GET", "/api/chat/conversations/{id}", "/api/chat/conversations/{id}")

    @task(3)
    def stream(self) -> None:
        name = "/api/chat, streamed"
        reply, _ = self.ask("POST", "/api/chat", name, body={"message": "Hello", "stream": True})
        if reply is not None and reply.status_code == 200 and "event: done" not in reply.text:
            events.request.fire(
                request_type="POST",
                name=f"POST {name}",
                response_time=0,
                response_length=0,
                exception=ValueError(f"no end: {reply.text[-200:]}"),
            )

    @task(1)
    def sign_in_again(self) -> None:
        if not SPREAD and not SIGN_INS.allows():
            return self.me()
        account = self.someone()
        if account is None:
            return None
        body = {"email": account.email, "password": PASSWORD}
        # Without the session, which a sign-in would end.
        account.token, token = "", account.token
        reply = self.send("POST", "/api/auth/signin", "POST /api/auth/signin", account, 200, body)
        account.token = reply.json()["token"] if reply.status_code == 200 else token
        ACCOUNTS.put_back(account)
        return None


class Admin(Client):
    """Someone who reads the figures, as often as one user may."""

    fixed_count = 1
    wait_time = constant_throughput(1.2)

    def on_start(self) -> None:
        self.account = ACCOUNTS.new()
        body = {"email": os.environ["ADMIN_EMAIL"], "password": os.environ["ADMIN_PASSWORD"]}
        url = f"{ACCOUNTS_URL}/api/auth/signin"
        self.account.token = self.send("POST", url, "POST /api/auth/signin", self.account, 200, body).json()["token"]
        self.turn = 0

    @task
    def figure(self) -> None:
        figure = FIGURES[self.turn % len(FIGURES)]
        self.turn += 1
        self.send("GET", f"/api/analytics/{figure}", f"GET /api/analytics/{figure}", self.account)


@events.test_start.add_listener
def begin(**_: object) -> None:
    """What else the machine does."""
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


@events.quitting.add_listener
def report(environment, **_: object) -> None:
    """A line a route, and the exit code."""
    print(f"\n{'route':44}{'requests':>9}{'errors':>8}{'per s':>8}{'p50 ms':>8}{'p95 ms':>8}{'p99 ms':>8}")
    total = environment.stats.total
    rows = sorted(environment.stats.entries.values(), key=lambda entry: entry.name)
    for entry in [*rows, total]:
        p50, p95, p99 = (entry.get_response_time_percentile(part) or 0 for part in (0.5, 0.95, 0.99))
        figures = f"{entry.total_rps:8.1f}{p50:8.0f}{p95:8.0f}{p99:8.0f}"
        print(f"{entry.name:44}{entry.num_requests:9}{entry.num_failures:8}{figures}")
    print(f"{ACCOUNTS.made} accounts; load of the machine after: {os.getloadavg()[0]:.1f}")
    for failure in environment.stats.errors.values():
        print(f"{failure.occurrences} x {failure.name}: {failure.error}")
    environment.process_exit_code = 1 if total.num_failures or not total.num_requests else 0
