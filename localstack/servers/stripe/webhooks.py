"""Events of the replica, signed and pushed to the application."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from servers.stripe import gaps

if TYPE_CHECKING:
    from servers.stripe.world import StripeWorld

POLL_SECONDS = 0.25
# Stripe's first retries, shortened: a developer restarts the receiver in seconds.
RETRY_SECONDS = (1, 2, 4, 8, 16, 32)

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
        self._seen: set[str] = set()
        self._deliveries: set[asyncio.Task] = set()

    async def run(self) -> None:
        """Deliver new events, oldest first, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            reply = await self._world.call("GET", "/v1/events", "limit=100")
            if reply.status != 200:
                continue
            for event in reversed(json.loads(reply.body)["data"]):
                if event["id"] not in self._seen:
                    self._seen.add(event["id"])
                    self.push(event)

    def push(self, event: dict) -> None:
        """Deliver one event, with retries, without holding up the next."""
        gaps.fill(event)
        event["pending_webhooks"] = 1
        delivery = asyncio.get_running_loop().create_task(self._deliver(event))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, event: dict) -> None:
        for pause in (*RETRY_SECONDS, None):
            try:
                await asyncio.to_thread(self._post, event)
                return
            except (OSError, urllib.error.HTTPError) as error:
                log.warning("%s %s was not taken: %s", event["type"], event["id"], error)
            if pause is None:
                return
            await asyncio.sleep(pause)

    def _post(self, event: dict) -> None:
        body = json.dumps(event).encode()
        headers = {
            "Content-Type": "application/json",
            "Stripe-Signature": signature(self._secret, body, int(time.time())),
        }
        request = urllib.request.Request(self._url, body, headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            reply.read()
