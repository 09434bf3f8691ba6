"""The replica, as one account in one file, called in process."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_plus, urlencode

from seahaven.clock import Clock
from seahaven.ctx import Ctx, InstanceInfo
from seahaven.db import Db, build_blank, open_instance
from seahaven.handles import unbound
from seahaven.http.messages import HttpRequest
from seahaven.ids import Ids
from seahaven_stripe_world import startup, world
from seahaven_stripe_world.http_api.handler import handle
from seahaven_stripe_world.stripe_errors import StripeApiError

from servers.stripe import cards, customers, gaps, intents, modes, own, updates  # noqa: F401

# What the replica itself does not keep: how far a customer's time is moved on, what became
# of each event, and the objects that the modules beside this one add.
OWN_TABLES = """
CREATE TABLE IF NOT EXISTS replica_clocks (
    customer TEXT PRIMARY KEY, offset_seconds INTEGER NOT NULL, when_unpaid TEXT NOT NULL DEFAULT 'cancel'
) STRICT;
CREATE TABLE IF NOT EXISTS replica_cards (
    key TEXT NOT NULL, name TEXT NOT NULL, payment_method TEXT NOT NULL, PRIMARY KEY (key, name)
) STRICT;
CREATE TABLE IF NOT EXISTS replica_objects (
    id TEXT PRIMARY KEY, seq INTEGER NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS replica_deliveries (
    seq INTEGER PRIMARY KEY, event TEXT NOT NULL UNIQUE, customer TEXT NOT NULL, body TEXT NOT NULL,
    happened TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, status INTEGER, error TEXT, due REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS replica_deliveries_by_state ON replica_deliveries (state, seq);
CREATE INDEX IF NOT EXISTS replica_deliveries_by_customer ON replica_deliveries (customer, seq);
CREATE TABLE IF NOT EXISTS replica_modes (customer TEXT PRIMARY KEY, mode TEXT NOT NULL) STRICT;
"""

KEY = (("authorization", "Bearer sk_test_local"),)
ID = re.compile(r"\b(sub_sched|cus|sub|in|pi|pm|si|ch|seti|re)_[A-Za-z0-9]+")
# Whose an object is, by the prefix of its id.
OWNER = {
    "sub": "SELECT customer FROM subscriptions WHERE id = ?",
    "sub_sched": "SELECT customer FROM subscription_schedules WHERE id = ?",
    "in": "SELECT customer FROM invoices WHERE id = ?",
    "pi": "SELECT customer FROM payment_intents WHERE id = ?",
    "seti": "SELECT customer FROM setup_intents WHERE id = ?",
    "pm": "SELECT customer FROM payment_methods WHERE id = ?",
    "ch": "SELECT customer FROM charges WHERE id = ?",
    "re": "SELECT c.customer FROM refunds r JOIN charges c ON c.id = r.charge WHERE r.id = ?",
    "si": "SELECT s.customer FROM subscription_items i JOIN subscriptions s ON s.id = i.subscription WHERE i.id = ?",
}

Headers = tuple[tuple[str, str], ...]
T = TypeVar("T")


@dataclass
class Reply:
    """What the replica answered."""

    status: int = 0
    headers: Headers = ()
    body: dict[str, Any] = field(default_factory=dict)


class MovableClock(Clock):
    """Real time in whole seconds, as Stripe counts, except while something happens at another instant."""

    def __init__(self) -> None:
        super().__init__(datetime.fromisoformat("1970-01-01T00:00:00Z"), "wall")
        self._instant: datetime | None = None

    def now(self) -> datetime:
        """The instant that is being lived through."""
        return self._instant or super().now().replace(microsecond=0)

    @contextlib.contextmanager
    def at(self, instant: datetime) -> Iterator[None]:
        """Everything in the block happens at that instant."""
        before, self._instant = self._instant, instant
        try:
            yield
        finally:
            self._instant = before


class StripeWorld:
    """One account of the replica, kept in `path`."""

    def __init__(self, path: Path, url: str, routes: list[own.OwnRoute]) -> None:
        # Where the pages are that Stripe would host.
        self.url = url
        self._routes = routes
        self._lock = threading.RLock()
        self.clock = MovableClock()
        # Ids made after a restart must differ from those made before it.
        seed = secrets.token_bytes(32)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build_blank(path, world.schema, clock=self.clock, seed=seed).close()
        db: Db = open_instance(path, self.clock, seed)
        db.execute(OWN_TABLES + intents.TABLE)
        info = InstanceInfo(id="local", fixture=None, seed=seed)
        self._ctx = Ctx(db=db, clock=self.clock, ids=Ids(seed), state={}, instance=info, worlds=unbound())
        self.recorders: list[Callable[[Ctx], None]] = []
        self.listeners: list[Callable[[], None]] = []
        with self._transaction() as ctx:
            ctx.state["account"] = startup.open_account(ctx, livemode=False)

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._ctx.db.close()

    def run(self, change: Callable[[Ctx], T]) -> T:
        """One change, whole or not at all, with its events recorded; then whoever waits for them is told."""
        with self._transaction() as ctx:
            result = change(ctx)
            for recorder in self.recorders:
                recorder(ctx)
        for listener in self.listeners:
            listener()
        return result

    def quietly(self, change: Callable[[Ctx], T]) -> T:
        """A look, or a change that makes no events."""
        with self._transaction() as ctx:
            return change(ctx)

    def request(self, method: str, path: str, query: str = "", headers: Headers = KEY, body: bytes = b"") -> Reply:
        """One request to the account, at the time of the customer whom it concerns."""

        def answer(ctx: Ctx) -> Reply:
            words = f"{path}?{query}&{unquote_plus(body.decode('utf-8', 'replace'))}"
            with self.clock.at(self.time_of(customer_in(ctx, words))):
                return self._answer(ctx, HttpRequest(method, path, query, headers, body))

        return self.run(answer)

    def call(self, ctx: Ctx, method: str, path: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """A request made by the replica's own pages, inside a change; its failure is `Refused`."""
        encoded = urlencode(list(flattened(parameters or {})))
        query, body = ("", encoded.encode()) if method == "POST" else (encoded, b"")
        reply = self._answer(ctx, HttpRequest(method, path, query, KEY, body))
        if reply.status >= 400:
            raise Refused(reply)
        return reply.body

    def time_of(self, customer: str | None) -> datetime:
        """Now, for that customer."""
        sql = "SELECT offset_seconds FROM replica_clocks WHERE customer = ?"
        row = self.quietly(lambda ctx: ctx.db.one(sql, customer or ""))
        now = Clock.wall().now().replace(microsecond=0)
        return now + timedelta(seconds=row["offset_seconds"] if row else 0)

    def at_time_of(self, name: str, change: Callable[[Ctx], T]) -> T:
        """A change at the time of whoever an object of that id belongs to."""

        def run(ctx: Ctx) -> T:
            row = ctx.db.one("SELECT body FROM replica_objects WHERE id = ?", name)
            with self.clock.at(self.time_of(customer_in(ctx, row["body"] if row else name))):
                return change(ctx)

        return self.run(run)

    def _answer(self, ctx: Ctx, request: HttpRequest) -> Reply:
        request = cards.with_real_methods(ctx, request, lambda asked: handle(ctx, asked))
        try:
            cards.check_owner(ctx, request)
            added = own.answer(self, ctx, request, self._routes)
        except Refused as refused:
            return refused.reply
        except StripeApiError as error:
            return Reply(error.status, (), error.envelope())
        if added:
            return Reply(added.status, own.headers(ctx), added.body)
        answer = handle(ctx, request)
        body = json.loads(answer.body_bytes)
        cards.explain_refusal(ctx, request, answer.status, body)
        gaps.fill(body, self.url)
        intents.complete(ctx, body, f"{request.query}&{request.body.decode('utf-8', 'replace')}")
        return Reply(answer.status, answer.headers, body)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Ctx]:
        with self._lock, self._ctx.db.transaction():
            yield self._ctx


class Refused(Exception):
    """The replica refused what one of its own pages asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__(reply.body.get("error", {}).get("message", "refused"))


def customer_in(ctx: Ctx, words: str) -> str | None:
    """The customer whom a request or an object names, directly or by something of theirs."""
    for match in ID.finditer(words):
        if match[1] == "cus":
            return match[0]
        row = ctx.db.one(OWNER[match[1]], match[0])
        if row and row["customer"]:
            return row["customer"]
    return None


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Parameters as Stripe's form encoding writes them: `items[0][price]`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flattened(item, f"{name}[{key}]" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from flattened(item, f"{name}[{index}]")
    elif isinstance(value, bool):
        yield name, "true" if value else "false"
    elif value is not None:
        yield name, str(value)
