"""Time: what becomes due in a customer's subscriptions, and the doing of it.

Renewals, trials that end, invoices that finalise an hour after they are made,
payments that are tried again, cancellations that were asked for and phases of
schedules happen when their hour comes, be it by itself or because the
customer's time was moved on. Each happens at its own instant, in order, with
the events and timestamps that Stripe gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from seahaven.ctx import Ctx
from seahaven_stripe_world import _json, _time
from seahaven_stripe_world.billing import dunning, invoicing
from seahaven_stripe_world.billing import subscription_lifecycle as lifecycle
from seahaven_stripe_world.resources import events, payment_intents
from seahaven_stripe_world.resources import subscription_schedules as schedules

from servers.stripe.world import StripeWorld

INCOMPLETE_HOURS = 23
TRIAL_NOTICE = timedelta(days=3)
# An invoice is open to changes for an hour, then finalised and collected.
SETTLED = timedelta(seconds=3_602)
DEAD = ("canceled", "incomplete_expired")
END_BEHAVIORS = dunning.END_BEHAVIORS
# So many steps in one move are years of renewals; more is a mistake.
STEPS = 2_000

Row = dict[str, Any]


class Step(NamedTuple):
    """Something that happens at an instant; what is less in `rank` goes first."""

    instant: str
    rank: int
    name: str
    act: Callable[[Ctx], None]


def catch_up(world: StripeWorld) -> None:
    """Let every customer live up to their own present."""
    sql = f"SELECT DISTINCT customer FROM subscriptions WHERE status NOT IN {DEAD}"
    for row in world.quietly(lambda ctx: ctx.db.rows(sql)):
        customer = row["customer"]
        if world.quietly(lambda ctx, who=customer: _next(ctx, who, _iso(world.time_of(who)))):
            world.run(lambda ctx, who=customer: _live(world, ctx, who, world.time_of(who)))


def advance(world: StripeWorld, customer: str, until: datetime, when_unpaid: str | None) -> None:
    """Move one customer's time on to an instant and let everything happen on the way."""

    def move(ctx: Ctx) -> None:
        if when_unpaid:
            _clock(ctx, customer)
            ctx.db.execute("UPDATE replica_clocks SET when_unpaid = ? WHERE customer = ?", when_unpaid, customer)
        _live(world, ctx, customer, until)
        ahead = math.ceil((until - world.clock.now()).total_seconds())
        _clock(ctx, customer)
        ctx.db.execute("UPDATE replica_clocks SET offset_seconds = ? WHERE customer = ?", ahead, customer)

    world.run(move)


def is_new(ctx: Ctx, customer: str) -> bool:
    """Whether it is a customer for whom nothing was billed or subscribed to."""
    known = ctx.db.one("SELECT 1 FROM customers WHERE id = ?", customer)
    begun = (
        ctx.db.one(f"SELECT 1 FROM {table} WHERE customer = ?", customer)
        for table in ("subscriptions", "payment_intents", "invoices")
    )
    return bool(known) and not any(begun)


def renewal_of(ctx: Ctx, subscription: str) -> datetime:
    """When its current period, or its trial, ends."""
    return _instant(_period(ctx, subscription)[1])


def next_retry(ctx: Ctx, customer: str) -> datetime | None:
    """When the next payment of an open invoice is tried; none when nothing is."""
    rows = [step.instant for step in _invoice_steps(ctx, customer) if step.name == "retry"]
    return _instant(min(rows)) if rows else None


def _live(world: StripeWorld, ctx: Ctx, customer: str, until: datetime) -> None:
    limit = _iso(until)
    clock = ctx.db.one("SELECT when_unpaid FROM replica_clocks WHERE customer = ?", customer)
    account = ctx.state["account"]
    account["dunning"] = {"end_behavior": clock["when_unpaid"] if clock else "cancel"}
    ctx.state["_request"] = {}  # what happens by itself was asked for by no request
    try:
        for _ in range(STEPS):
            step = _next(ctx, customer, limit)
            if step is None:
                return
            with world.clock.at(_instant(step.instant)):
                step.act(ctx)
    finally:
        del account["dunning"]
    raise OverflowError(f"more than {STEPS} steps until {limit}")


def _next(ctx: Ctx, customer: str, limit: str) -> Step | None:
    due = [step for step in _steps(ctx, customer) if step.instant <= limit]
    return min(due, key=lambda step: step[:2]) if due else None


def _steps(ctx: Ctx, customer: str) -> Iterator[Step]:
    yield from _invoice_steps(ctx, customer)
    yield from _schedule_steps(ctx, customer)
    sql = f"SELECT * FROM subscriptions WHERE customer = ? AND status NOT IN {DEAD}"
    for row in ctx.db.rows(sql, customer):
        yield from _subscription_steps(ctx, row)


def _invoice_steps(ctx: Ctx, customer: str) -> Iterator[Step]:
    for row in ctx.db.rows("SELECT * FROM invoices WHERE customer = ? AND status IN ('draft', 'open')", customer):
        if row["status"] == "draft" and row["automatically_finalizes_at"]:
            yield Step(row["automatically_finalizes_at"], 0, "finalize", lambda ctx, row=row: _finalize(ctx, row))
        elif (
            row["status"] == "open"
            and row["next_payment_attempt"]
            and _subscription(ctx, row).get("status") == "past_due"
        ):
            yield Step(row["next_payment_attempt"], 0, "retry", lambda ctx, row=row: _retry(ctx, row))


def _schedule_steps(ctx: Ctx, customer: str) -> Iterator[Step]:
    sql = "SELECT * FROM subscription_schedules WHERE customer = ? AND status IN ('active', 'not_started')"
    for row in ctx.db.rows(sql, customer):
        phases = _json.loads(row["phases"])
        if not phases:
            continue
        if row["status"] == "not_started":
            start = _time.from_unix(phases[0]["start_date"])
            yield Step(start, 1, "start", lambda ctx, row=row, phase=phases[0]: _start_schedule(ctx, row, phase))
            continue
        current = _json.loads(row["current_phase"]) if row["current_phase"] else None
        done = current["end_date"] if current else phases[0]["start_date"]
        ahead = [phase for phase in phases if phase["start_date"] >= done]
        instant = _time.from_unix(ahead[0]["start_date"] if ahead else phases[-1]["end_date"])
        if ahead:
            yield Step(instant, 1, "phase", lambda ctx, row=row, phase=ahead[0]: _enter_phase(ctx, row, phase))
        else:
            yield Step(instant, 1, "end", lambda ctx, row=row: _end_schedule(ctx, row))


def _subscription_steps(ctx: Ctx, row: Row) -> Iterator[Step]:
    if row["status"] == "incomplete":
        expires = _later(row["created"], timedelta(hours=INCOMPLETE_HOURS))
        yield Step(expires, 2, "expire", lambda ctx: lifecycle.expire_incomplete(ctx, row["id"]))
        return
    if row["status"] == "paused":
        return
    end = _period(ctx, row["id"])[1]
    if row["status"] == "trialing" and not _noticed(ctx, row["id"]):
        notice = max(_later(end, -TRIAL_NOTICE), row["created"])
        yield Step(notice, 2, "notice", lambda ctx: _notice_trial_end(ctx, row["id"]))
    cancel = end if row["cancel_at_period_end"] else row["cancel_at"]
    if cancel and cancel <= end:
        yield Step(cancel, 3, "cancel", lambda ctx: _cancel(ctx, row["id"]))
    else:
        yield Step(end, 4, "renew", lambda ctx: _renew(ctx, row["id"]))


def _renew(ctx: Ctx, subscription: str) -> None:
    """A new period begins, with a draft invoice for it."""
    row, before = _read(ctx, subscription)
    start, boundary = _period(ctx, subscription)
    trialing = row["status"] == "trialing"
    settings = _json.loads(row["trial_settings"]) if row["trial_settings"] else {}
    missing = settings.get("end_behavior", {}).get("missing_payment_method", "create_invoice")
    unpayable = lifecycle._resolve_pm(ctx, row, row["customer"]) is None
    if trialing and missing != "create_invoice" and unpayable:
        lifecycle.advance_cycle(ctx, subscription)
        return
    if row["pause_collection"]:
        lifecycle.advance_cycle(ctx, subscription)
        _tell(ctx, subscription, before)
        return
    if trialing:
        lifecycle._set_status(ctx, subscription, "active")
    lifecycle._roll_periods_to(ctx, subscription, boundary)
    _keep_to_anchor(ctx, row, boundary)
    # Of an unpaid subscription invoices are made and left alone.
    advances = row["status"] != "unpaid"
    invoice = lifecycle._cycle_invoice(
        ctx,
        row,
        billing_reason="subscription_cycle",
        auto_advance=advances,
        finalize=False,
        period_start=start,
        period_end=boundary,
    )
    lifecycle._set_latest_invoice(ctx, subscription, invoice["id"])
    _tell(ctx, subscription, before)


def _keep_to_anchor(ctx: Ctx, row: Row, start: str) -> None:
    """Periods end on the anchor's day of the month, also after a shorter month."""
    anchor = row["billing_cycle_anchor"]
    for item in lifecycle._items_of(ctx, row["id"]):
        interval, count = lifecycle._interval_of(lifecycle._price_of(ctx, item["price"]))
        passed = 1
        while (end := invoicing.add_interval(anchor, interval=interval, interval_count=count * passed)) <= start:
            passed += 1
        ctx.db.execute("UPDATE subscription_items SET current_period_end = ? WHERE id = ?", end, item["id"])


def _finalize(ctx: Ctx, invoice: Row) -> None:
    """A draft becomes open and is collected."""
    fresh = invoicing.finalize_and_settle(ctx, invoice["id"])
    if fresh["status"] != "open":
        return
    if invoice["collection_method"] == "charge_automatically":
        _collect(ctx, fresh)


def _retry(ctx: Ctx, invoice: Row) -> None:
    """The next try at an open invoice; after the last the subscription ends as its account says."""
    subscription = _subscription(ctx, invoice)
    method = invoicing._resolve_pm(ctx, invoice, subscription or None)
    if method and "charge_declined" in payment_intents._behavior_tags(method):
        ctx.db.execute("UPDATE invoices SET attempt_count = attempt_count + 1 WHERE id = ?", invoice["id"])
    _collect(ctx, invoice)
    after = invoicing._re_read(ctx, invoice["id"])
    exhausted = dunning.schedule_exhausted(after["attempt_count"], dunning.policy(ctx))
    if after["status"] == "open" and exhausted and _subscription(ctx, invoice).get("latest_invoice") == invoice["id"]:
        dunning.apply_end_of_schedule(ctx, subscription["id"])


def _collect(ctx: Ctx, invoice: Row) -> None:
    subscription = _subscription(ctx, invoice)
    outcome = invoicing.pay_invoice(ctx, invoice["id"], sub_row=subscription or None)["outcome"]
    if outcome == "paid":
        return
    if outcome == "no_payment_method":
        count = invoicing._re_read(ctx, invoice["id"])["attempt_count"]
        ctx.db.execute("UPDATE invoices SET attempted = 1, attempt_count = ? WHERE id = ?", count + 1, invoice["id"])
        invoicing._schedule_next_attempt(ctx, invoice["id"])
        invoicing.emit_invoice_event(ctx, "invoice.payment_failed", invoicing._re_read(ctx, invoice["id"]))
    latest = subscription.get("latest_invoice") == invoice["id"]
    if latest and subscription["status"] in ("active", "trialing"):
        _, before = _read(ctx, subscription["id"])
        lifecycle._set_status(ctx, subscription["id"], "past_due")
        _tell(ctx, subscription["id"], before)


def _cancel(ctx: Ctx, subscription: str) -> None:
    """A cancellation that was asked for takes effect; `canceled_at` stays when it was asked for."""
    ctx.db.execute(
        "UPDATE subscriptions SET status = 'canceled', ended_at = ?, canceled_at = coalesce(canceled_at, ?)"
        " WHERE id = ?",
        ctx.clock.iso(),
        ctx.clock.iso(),
        subscription,
    )
    events.emit_event(ctx, type="customer.subscription.deleted", obj=_read(ctx, subscription)[1])


def _notice_trial_end(ctx: Ctx, subscription: str) -> None:
    events.emit_event(ctx, type="customer.subscription.trial_will_end", obj=_read(ctx, subscription)[1])


def _noticed(ctx: Ctx, subscription: str) -> bool:
    sql = (
        "SELECT 1 FROM events WHERE type = 'customer.subscription.trial_will_end'"
        " AND json_extract(data, '$.object.id') = ?"
    )
    return ctx.db.one(sql, subscription) is not None


def _start_schedule(ctx: Ctx, row: Row, phase: Row) -> None:
    subscription = schedules._create_subscription_from_phase(ctx, row["customer"], phase)
    ctx.db.execute("UPDATE subscriptions SET schedule = ? WHERE id = ?", row["id"], subscription)
    ctx.db.execute(
        "UPDATE subscription_schedules SET status = 'active', subscription = ? WHERE id = ?", subscription, row["id"]
    )
    _set_phase(ctx, row["id"], phase)


def _enter_phase(ctx: Ctx, row: Row, phase: Row) -> None:
    """The subscription becomes what the phase says; at the end of a period without a proration."""
    subscription = row["subscription"]
    before = _read(ctx, subscription)[1]
    items = lifecycle._items_of(ctx, subscription)
    at_boundary = _period(ctx, subscription)[1] == ctx.clock.iso()
    if at_boundary and len(items) == len(phase["items"]):
        for item, wanted in zip(items, phase["items"], strict=True):
            sql = "UPDATE subscription_items SET price = ?, quantity = ? WHERE id = ?"
            ctx.db.execute(sql, wanted["price"], wanted["quantity"], item["id"])
        if phase["metadata"]:
            sql = "UPDATE subscriptions SET metadata = json_patch(metadata, ?) WHERE id = ?"
            ctx.db.execute(sql, _json.dumps(phase["metadata"]), subscription)
        schedules._apply_phase_to_subscription(ctx, subscription, phase)
        _tell(ctx, subscription, before)
    else:
        changes = [
            {"id": item["id"], "price": wanted["price"], "quantity": wanted["quantity"]}
            for item, wanted in zip(items, phase["items"], strict=False)
        ]
        update = {"items": changes, "proration_behavior": phase["proration_behavior"]}
        lifecycle.apply_update(ctx, subscription, update)
    _set_phase(ctx, row["id"], phase)


def _set_phase(ctx: Ctx, schedule: str, phase: Row) -> None:
    current = {"start_date": phase["start_date"], "end_date": phase["end_date"]}
    ctx.db.execute("UPDATE subscription_schedules SET current_phase = ? WHERE id = ?", _json.dumps(current), schedule)
    events.emit_event(
        ctx, type="subscription_schedule.updated", obj=schedules.serialize(ctx, schedules._re_read(ctx, schedule))
    )


def _end_schedule(ctx: Ctx, row: Row) -> None:
    """After the last phase the subscription goes on by itself, or ends."""
    now = ctx.clock.iso()
    subscription = row["subscription"]
    ctx.db.execute("UPDATE subscriptions SET schedule = NULL WHERE id = ?", subscription)
    if row["end_behavior"] == "cancel":
        ctx.db.execute(
            "UPDATE subscription_schedules SET status = 'completed', completed_at = ?, current_phase = NULL"
            " WHERE id = ?",
            now,
            row["id"],
        )
        _cancel(ctx, subscription)
        kind = "subscription_schedule.completed"
    else:
        ctx.db.execute(
            "UPDATE subscription_schedules SET status = 'released', released_at = ?, released_subscription = ?,"
            " subscription = NULL, current_phase = NULL WHERE id = ?",
            now,
            subscription,
            row["id"],
        )
        kind = "subscription_schedule.released"
    events.emit_event(ctx, type=kind, obj=schedules.serialize(ctx, schedules._re_read(ctx, row["id"])))


def _tell(ctx: Ctx, subscription: str, before: Row) -> None:
    after = _read(ctx, subscription)[1]
    previous = lifecycle._previous(before, after)
    events.emit_event(ctx, type="customer.subscription.updated", obj=after, previous=previous)


def _read(ctx: Ctx, subscription: str) -> tuple[Row, Row]:
    row = lifecycle._re_read(ctx, subscription)
    return row, lifecycle._serialize(ctx, row)


def _subscription(ctx: Ctx, invoice: Row) -> Row:
    row = ctx.db.one("SELECT * FROM subscriptions WHERE id = ?", invoice["parent_subscription"])
    return row or {}


def _period(ctx: Ctx, subscription: str) -> tuple[str, str]:
    row = ctx.db.one(
        "SELECT min(current_period_start) AS start, min(current_period_end) AS end"
        " FROM subscription_items WHERE subscription = ?",
        subscription,
    )
    return row["start"], row["end"]


def _clock(ctx: Ctx, customer: str) -> None:
    ctx.db.execute("INSERT OR IGNORE INTO replica_clocks (customer, offset_seconds) VALUES (?, 0)", customer)


def _instant(iso: str) -> datetime:
    return datetime.fromisoformat(iso)


def _iso(instant: datetime) -> str:
    return _time.from_unix(int(instant.timestamp()))


def _later(iso: str, by: timedelta) -> str:
    return _iso(_instant(iso) + by)
