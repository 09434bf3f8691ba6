"""A history to look at: users who sign up, chat, pay and leave, through the real ingest function.

The same number on the same day makes the same events with the same ids, so that seeding twice counts once.
"""

from __future__ import annotations

import datetime
import json
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any

import deploy
from settings import Failure, Profile

DAYS = 180
# Messages of one invocation: a payload stays well below Lambda's 6 MB.
BATCH = 4000
DAY_MS = 86_400_000
MODELS = {
    "openai": [("gpt-4", 45), ("gpt-4o-mini", 2)],
    "anthropic": [("claude-sonnet-4-5", 9), ("claude-haiku-4-5", 3)],
    "google": [("gemini-2.5-pro", 7), ("gemini-2.5-flash", 1)],
}
PRICES = {"pro": 2999, "enterprise": 9999}
COUNTRIES = ["US", "US", "DE", "GB", "FR", "IN", "BR", "JP", None]
ERRORS = ["rate_limit", "timeout", "server_error", "context_length", "content_filter"]

Event = dict[str, Any]


def seed(profile: Profile, count: int) -> None:
    """Ingest so many events; says how many a second."""
    if count < 1:
        raise Failure("EVENTS must be a positive number.")
    started = time.monotonic()
    events = History(count).events()
    done = 0
    while batch := list(islice(events, BATCH)):
        records = [record(event) for event in batch]
        reply = deploy.invoke(profile, "workers-ingest", {"Records": records})
        if reply["batchItemFailures"]:
            raise Failure(f"Events were not ingested; {profile.logs / 'aws.log'} says why.")
        done += len(batch)
        print(f"\r{done:,} of {count:,} events", end="", flush=True)
    seconds = time.monotonic() - started
    print(f"\n{done:,} events in {seconds:.0f} s, {done / seconds:,.0f} a second")


def record(event: Event) -> dict[str, Any]:
    """The event as SQS hands it over, sent when it happened."""
    moment = datetime.datetime.fromisoformat(event["time"])
    return {
        "messageId": event["id"],
        "body": json.dumps(event, separators=(",", ":")),
        "attributes": {"SentTimestamp": str(int(moment.timestamp() * 1000)), "ApproximateReceiveCount": "1"},
        "eventSource": "aws:sqs",
    }


class User:
    """Somebody with an own taste, and perhaps a subscription."""

    def __init__(self, chance: random.Random, subject: str) -> None:
        self.subject = subject
        self.country = chance.choice(COUNTRIES)
        self.plan = "free"
        self.provider = chance.choices(list(MODELS), [5, 3, 2])[0]
        self.conversation = ""
        self.subscription = ""


class History:
    """Day by day, so that events come in the order of their time."""

    def __init__(self, count: int) -> None:
        self.chance = random.Random(count)
        self.count = count
        midnight = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self.first = int(midnight.timestamp() * 1000) - DAYS * DAY_MS
        self.users: list[User] = []
        self.renewals: dict[int, list[User]] = defaultdict(list)

    def events(self) -> Iterator[Event]:
        """Exactly the number that was asked for, more of them on later days."""
        weights = [1 + 3 * day / DAYS for day in range(DAYS)]
        given = 0
        for day in range(DAYS):
            due = round(self.count * sum(weights[: day + 1]) / sum(weights))
            yield from sorted(islice(self._day(day), due - given), key=lambda event: event["time"])
            given = due

    def _day(self, day: int) -> Iterator[Event]:
        for user in self.renewals.pop(day, []):
            yield from self._renew(user, day)
        while True:
            if not self.users or self.chance.random() < 0.04:
                yield from self._sign_up(day)
            yield from self._session(self.chance.choice(self.users), day)

    def _sign_up(self, day: int) -> Iterator[Event]:
        user = User(self.chance, str(self._id(self._moment(day))))
        self.users.append(user)
        yield self._event(user, day, "user.signup", method="password")
        if self.chance.random() < 0.8:
            yield self._event(user, day, "user.email_verified")

    def _session(self, user: User, day: int) -> Iterator[Event]:
        yield self._event(user, day, "user.signin", method="password")
        if not user.conversation or self.chance.random() < 0.5:
            user.conversation = str(self._id(self._moment(day)))
            yield self._event(user, day, "chat.conversation_created", conversationId=user.conversation)
        for _ in range(self.chance.randint(1, 8)):
            yield self._request(user, day)
        if user.plan == "free" and self.chance.random() < 0.01:
            yield from self._subscribe(user, day)

    def _request(self, user: User, day: int) -> Event:
        chance = self.chance
        provider = user.provider if chance.random() < 0.8 else chance.choice(list(MODELS))
        model, price = chance.choice(MODELS[provider])
        tokens = {"inputTokens": chance.randint(20, 2000), "outputTokens": chance.randint(10, 900)}
        latency = int(chance.lognormvariate(7.5, 0.5))
        data: dict[str, Any] = {
            "conversationId": user.conversation, "provider": provider, "model": model, "requestedModel": model,
            "cachedInputTokens": 0, "reasoningTokens": 0, "latencyMs": latency, "attempts": 1,
            "fallbackFrom": chance.choice(list(MODELS)) if chance.random() < 0.01 else None,
        }  # fmt: skip
        if chance.random() < 0.02:
            return self._event(
                user, day, "chat.message_failed", **data, errorClass=chance.choice(ERRORS), inputTokens=0,
                outputTokens=0, costMicroUsd=None,
            )  # fmt: skip
        return self._event(
            user, day, "chat.message_sent", **data, **tokens, messageId=str(self._id(self._moment(day))),
            costMicroUsd=sum(tokens.values()) * price, priceVersion="seed", finishReason="stop",
            ttftMs=latency // 4, streamed=chance.random() < 0.7, regenerated=chance.random() < 0.05,
        )  # fmt: skip

    def _subscribe(self, user: User, day: int) -> Iterator[Event]:
        user.plan = "pro" if self.chance.random() < 0.85 else "enterprise"
        user.subscription = str(self._id(self._moment(day)))
        yield self._event(user, day, "user.plan_upgraded", fromPlan="free", toPlan=user.plan)
        yield self._event(
            user, day, "billing.subscription_created", subscriptionId=user.subscription, status="active",
            movement="new", mrrDeltaMinor=PRICES[user.plan], currency="USD",
        )  # fmt: skip
        yield from self._pay(user, day)

    def _renew(self, user: User, day: int) -> Iterator[Event]:
        if self.chance.random() < 0.08:
            price, plan = PRICES[user.plan], user.plan
            yield self._event(
                user, day, "billing.subscription_canceled", subscriptionId=user.subscription, movement="churn",
                mrrDeltaMinor=-price, currency="USD",
            )  # fmt: skip
            user.plan = "free"
            yield self._event(user, day, "user.plan_downgraded", fromPlan=plan, toPlan="free")
        else:
            yield from self._pay(user, day)

    def _pay(self, user: User, day: int) -> Iterator[Event]:
        bill = {"invoiceId": str(self._id(self._moment(day))), "amountMinor": PRICES[user.plan], "currency": "USD"}
        if self.chance.random() < 0.06:
            payment = str(self._id(self._moment(day)))
            code = self.chance.choice(["insufficient_funds", "expired_card", None])
            yield self._event(user, day, "billing.payment_failed", paymentId=payment, **bill, declineCode=code)
        payment = str(self._id(self._moment(day)))
        yield self._event(user, day, "billing.payment_succeeded", paymentId=payment, **bill)
        if self.chance.random() < 0.02:
            refund = {"paymentId": payment, "amountMinor": bill["amountMinor"], "currency": "USD"}
            yield self._event(user, day, "billing.payment_refunded", **refund)
        self.renewals[day + 30].append(user)

    def _event(self, user: User, day: int, kind: str, **data: Any) -> Event:
        moment = self._moment(day)
        at = datetime.datetime.fromtimestamp(moment / 1000, datetime.UTC)
        return {
            "specversion": "1.0", "id": str(self._id(moment)), "source": "/seed", "type": kind,
            "subject": user.subject, "time": at.isoformat(timespec="milliseconds"),
            "datacontenttype": "application/json",
            "data": {"schemaVersion": 1, "plan": user.plan, "country": user.country, **data},
        }  # fmt: skip

    def _moment(self, day: int) -> int:
        # Busier by day than by night.
        hour = min(23.99, max(0.0, self.chance.gauss(14, 4)))
        return self.first + day * DAY_MS + int(hour * 3_600_000) + self.chance.randrange(1000)

    def _id(self, moment: int) -> uuid.UUID:
        """UUIDv7 of the moment."""
        low = self.chance.getrandbits(62)
        return uuid.UUID(int=moment << 80 | 7 << 76 | self.chance.getrandbits(12) << 64 | 2 << 62 | low)
