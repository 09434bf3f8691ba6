"""Events of the replica, signed and pushed to the application.

Every event is recorded in the change that made it, so none is lost, neither
when the application is down nor when the replica is restarted. A customer's
events come one after the other, oldest first; other customers do not wait for
them. What is not taken (no connection, no 2xx) is tried again, with growing
pauses, while later events go ahead, as with Stripe.

A test may ask for worse, for one customer or for all (`mode`, see MODES).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seahaven.ctx import Ctx
from seahaven_stripe_world.resources import events

from servers.stripe import gaps

if TYPE_CHECKING:
    from servers.stripe.world import StripeWorld

MODES = {
    "ordered": "each once, oldest first",
    "duplicate": "each twice",
    "shuffle": "within a second, in any order",
    "hold": "not until they are released",
    "drop": "never",
}
# Stripe's pauses, shortened: a developer restarts the receiver in seconds. After the last, nothing.
RETRY_SECONDS = (1, 2, 4, 8, 16, 32, 60, 120, 300, *(600,) * 12)
LANES = 8
EVERYBODY = ""

log = logging.getLogger("stripe.webhooks")


def signature(secret: str, body: bytes, at: int) -> str:
    """The `Stripe-Signature` header of one delivery."""
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhooks:
    """One endpoint that gets every event once it accepts it."""

    def __init__(self, world: StripeWorld, url: str, secret: str) -> None:
        self._world = world
        self._url = url
        self._secret = secret
        self._wake = asyncio.Event()
        self._lanes: dict[str, asyncio.Task] = {}
        self._room = asyncio.Semaphore(LANES)

    async def run(self) -> None:
        """Deliver what is due until cancelled."""
        loop = asyncio.get_running_loop()
        self._world.recorders.append(lambda ctx: _record(ctx, self._world.url))
        self._world.listeners.append(lambda: loop.call_soon_threadsafe(self._wake.set))
        # Whoever was down before a restart may be up now.
        self._update("UPDATE replica_deliveries SET due = 0 WHERE state = 'pending'")
        while True:
            self._wake.clear()
            for customer in self._due():
                if customer not in self._lanes:
                    self._lanes[customer] = loop.create_task(self._lane(customer))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pause())

    def mode(self, customer: str, mode: str) -> None:
        """How that customer's events, or without one everybody's, are delivered from now on."""
        self._update("INSERT OR REPLACE INTO replica_modes VALUES (?, ?)", customer, mode)

    def release(self, customer: str, order: str, seed: int | None) -> list[str]:
        """Let held and dropped events go, in the order asked for; their ids."""
        where = "state IN ('held', 'dropped') AND (customer = ? OR ? = '')"
        found = self._rows(f"SELECT seq, event FROM replica_deliveries WHERE {where} ORDER BY seq", customer, customer)
        ids = [row["event"] for row in found]
        if order == "reversed":
            ids.reverse()
        elif order == "shuffled":
            random.Random(seed).shuffle(ids)
        # The order is kept by times in the past, one after the other.
        for place, event in enumerate(ids):
            self._update(
                "UPDATE replica_deliveries SET state = 'pending', attempts = 0, due = ? WHERE event = ?",
                place * 1e-3,
                event,
            )
        self._wake.set()
        return ids

    async def deliver(self, ids: Sequence[str], url: str | None = None) -> list[dict[str, Any]]:
        """Post these events now, in this order, as often as they are named; what came back."""
        answers = []
        for event in ids:
            rows = self._rows("SELECT seq, body FROM replica_deliveries WHERE event = ?", event)
            if not rows:
                raise LookupError(f"no event {event}")
            status, error = await asyncio.to_thread(self._post, rows[0]["body"].encode(), url)
            if _taken(status):
                self._settle(rows[0]["seq"], "delivered", status, None)
            answers.append({"event": event, "status": status, "error": error})
        return answers

    def deliveries(self, customer: str, limit: int, after: str | None) -> list[dict[str, Any]]:
        """Events in the order in which they happened, and what became of each."""
        rows = self._rows(
            "SELECT * FROM replica_deliveries WHERE (customer = ? OR ? = '')"
            " AND seq > coalesce((SELECT seq FROM replica_deliveries WHERE event = ?), 0) ORDER BY seq LIMIT ?",
            customer,
            customer,
            after or "",
            limit,
        )
        return [
            {
                "event": row["event"],
                "type": json.loads(row["body"])["type"],
                "customer": row["customer"] or None,
                "state": row["state"],
                "attempts": row["attempts"],
                "status": row["status"],
                "error": row["error"],
                "payload": json.loads(row["body"]),
            }
            for row in rows
        ]

    def newest(self, customer: str) -> str | None:
        """The last event so far."""
        rows = self._rows("SELECT event FROM replica_deliveries WHERE customer = ? ORDER BY seq DESC LIMIT 1", customer)
        return rows[0]["event"] if rows else None

    def waiting(self, customer: str) -> int:
        """How many events are still to be delivered."""
        where = "state = 'pending' AND (customer = ? OR ? = '')"
        return self._rows(f"SELECT count(*) n FROM replica_deliveries WHERE {where}", customer, customer)[0]["n"]

    async def _lane(self, customer: str) -> None:
        """One customer's due events, one after the other."""
        try:
            while row := self._next(customer):
                async with self._room:
                    await self._attempt(row)
        finally:
            del self._lanes[customer]
            self._wake.set()

    async def _attempt(self, row: dict[str, Any]) -> None:
        status, error = await asyncio.to_thread(self._post, row["body"].encode())
        if _taken(status) and self._mode_of(row["customer"]) == "duplicate":
            status, error = await asyncio.to_thread(self._post, row["body"].encode())
        if _taken(status):
            self._settle(row["seq"], "delivered", status, None)
            return
        log.warning("%s was not taken: %s", row["event"], error)
        more = row["attempts"] < len(RETRY_SECONDS)
        self._settle(row["seq"], "pending" if more else "failed", status, error)
        if more:
            due = time.time() + RETRY_SECONDS[row["attempts"]]
            self._update("UPDATE replica_deliveries SET due = ? WHERE seq = ?", due, row["seq"])

    def _post(self, body: bytes, url: str | None = None) -> tuple[int | None, str | None]:
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": signature(self._secret, body, int(time.time())),
        }
        try:
            with urllib.request.urlopen(urllib.request.Request(url or self._url, body, headers), timeout=20) as reply:
                reply.read()
                return reply.status, None
        except urllib.error.HTTPError as error:
            return error.code, f"status {error.code}"
        except OSError as error:
            return None, str(error)

    def _settle(self, seq: int, state: str, status: int | None, error: str | None) -> None:
        self._update(
            "UPDATE replica_deliveries SET state = ?, attempts = attempts + 1, status = ?, error = ? WHERE seq = ?",
            state,
            status,
            error,
            seq,
        )

    def _next(self, customer: str) -> dict[str, Any] | None:
        rows = self._rows(
            "SELECT * FROM replica_deliveries WHERE state = 'pending' AND customer = ? AND due <= ?"
            " ORDER BY due, seq LIMIT 1",
            customer,
            time.time(),
        )
        return rows[0] if rows else None

    def _due(self) -> list[str]:
        sql = "SELECT DISTINCT customer FROM replica_deliveries WHERE state = 'pending' AND due <= ?"
        return [row["customer"] for row in self._rows(sql, time.time())]

    def _pause(self) -> float:
        row = self._rows("SELECT min(due) due FROM replica_deliveries WHERE state = 'pending'")[0]
        return 60 if row["due"] is None else min(60, max(0.05, row["due"] - time.time()))

    def _mode_of(self, customer: str) -> str:
        return self._world.quietly(lambda ctx: _mode(ctx, customer))

    def _rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return self._world.quietly(lambda ctx: ctx.db.rows(sql, *parameters))

    def _update(self, sql: str, *parameters: Any) -> None:
        self._world.quietly(lambda ctx: ctx.db.execute(sql, *parameters))


def _record(ctx: Ctx, url: str) -> None:
    """Enter the events of a change for delivery."""
    sql = "SELECT * FROM events WHERE x_seq > coalesce((SELECT max(seq) FROM replica_deliveries), 0) ORDER BY x_seq"
    for row in ctx.db.rows(sql):
        event = events.serialize(ctx, row)
        gaps.fill(event, url)
        event["pending_webhooks"] = 1
        customer = _customer_of(event)
        mode = _mode(ctx, customer)
        state = {"hold": "held", "drop": "dropped"}.get(mode, "pending")
        due = time.time() + random.random() if mode == "shuffle" else 0
        ctx.db.execute(
            "INSERT INTO replica_deliveries (seq, event, customer, body, state, due) VALUES (?, ?, ?, ?, ?, ?)",
            row["x_seq"],
            event["id"],
            customer,
            json.dumps(event),
            state,
            due,
        )


def _customer_of(event: dict[str, Any]) -> str:
    obj = event["data"]["object"]
    if obj["object"] == "customer":
        return obj["id"]
    before = event["data"].get("previous_attributes", {})
    return obj.get("customer") or before.get("customer") or EVERYBODY


def _mode(ctx: Ctx, customer: str) -> str:
    sql = "SELECT mode FROM replica_modes WHERE customer IN (?, '') ORDER BY customer = '' LIMIT 1"
    row = ctx.db.one(sql, customer)
    return row["mode"] if row else "ordered"


def _taken(status: int | None) -> bool:
    return status is not None and 200 <= status < 300
