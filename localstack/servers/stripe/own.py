"""Routes of Stripe's API that the replica lacks, as if they were its own: errors, retries, expansion."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from seahaven.ctx import Ctx
from seahaven.http.messages import HttpRequest
from seahaven_stripe_world.dispatch.response import ApiResponse
from seahaven_stripe_world.http_api import wire
from seahaven_stripe_world.middleware.idempotency import replay_or_run
from seahaven_stripe_world.middleware.stripe_envelope import mint_request, response_headers
from seahaven_stripe_world.stripe_errors import StripeApiError, invalid_request, resource_missing

if TYPE_CHECKING:
    from servers.stripe.world import StripeWorld

Object = dict[str, Any]
Parameters = Mapping[str, Any]
Action = Callable[["StripeWorld", Ctx, Parameters, str], Object | ApiResponse]

# Where the objects are that a field of these names may be expanded to.
EXPANDABLE = {
    "customer": "/v1/customers/",
    "subscription": "/v1/subscriptions/",
    "invoice": "/v1/invoices/",
    "payment_intent": "/v1/payment_intents/",
    "setup_intent": "/v1/setup_intents/",
}


class OwnRoute(NamedTuple):
    """A method and a path; what is in the path's parentheses is the object's id."""

    method: str
    path: re.Pattern[str]
    action: Action


def answer(world: StripeWorld, ctx: Ctx, request: HttpRequest, routes: list[OwnRoute]) -> ApiResponse | None:
    """The reply of the route that the request is for, if there is one."""
    for route in routes:
        match = route.path.fullmatch(request.path)
        if match and request.method == route.method:
            return _answer(world, ctx, request, route, match[1] if match.groups() else "")
    return None


def headers(ctx: Ctx) -> tuple[tuple[str, str], ...]:
    """Those that each of Stripe's replies has."""
    return tuple(response_headers(ctx).items())


def _answer(world: StripeWorld, ctx: Ctx, request: HttpRequest, route: OwnRoute, name: str) -> ApiResponse:
    key = request.header("idempotency-key") or None
    mint_request(ctx, key)
    try:
        if not request.header("authorization"):
            raise invalid_request("You did not provide an API key.", status=401, pre_execution=True)
        raw = wire.decode(request).raw()

        def run() -> ApiResponse:
            with ctx.db.transaction():
                value = route.action(world, ctx, raw, name)
                if isinstance(value, ApiResponse):
                    return value
                return ApiResponse(200, _expanded(world, ctx, value, raw.get("expand")))

        if request.method != "POST" or key is None:
            return run()
        again = {"method": request.method, "path": request.path, "params": raw, "key": key}
        return replay_or_run(ctx, **again, run=run)[0]
    except StripeApiError as error:
        return ApiResponse(error.status, error.envelope())


def _expanded(world: StripeWorld, ctx: Ctx, value: Object, wanted: Any) -> Object:
    names = list(wanted.values()) if isinstance(wanted, dict) else wanted or []
    for name in names:
        field, _, rest = str(name).partition(".")
        if field in EXPANDABLE and isinstance(value.get(field), str):
            further = {"expand": [rest]} if rest else {}
            value = {**value, field: world.call(ctx, "GET", EXPANDABLE[field] + value[field], further)}
    return value


def new_id(prefix: str) -> str:
    """An id such as Stripe's."""
    return prefix + secrets.token_hex(16)


def save(ctx: Ctx, value: Object) -> Object:
    """Keep an object as it is now."""
    seq = ctx.db.one("SELECT coalesce(max(seq), 0) + 1 AS next FROM replica_objects")["next"]
    ctx.db.execute(
        "INSERT INTO replica_objects VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
        value["id"],
        seq,
        value["object"],
        json.dumps(value),
    )
    return value


def load(ctx: Ctx, kind: str, name: str) -> Object:
    """An object that was kept; 404 as Stripe words it."""
    row = ctx.db.one("SELECT body FROM replica_objects WHERE id = ? AND kind = ?", name, kind)
    if row is None:
        raise resource_missing(kind, name, param="id", status=404)
    return json.loads(row["body"])


def newest(ctx: Ctx, kind: str) -> list[Object]:
    """All objects of a kind, newest first."""
    rows = ctx.db.rows("SELECT body FROM replica_objects WHERE kind = ? ORDER BY seq DESC", kind)
    return [json.loads(row["body"]) for row in rows]


def required(parameters: Parameters, name: str) -> Any:
    """A parameter, or 400."""
    value = parameters.get(name)
    if value in (None, "", {}, []):
        raise invalid_request(f"Missing required param: {name}.", param=name, code="parameter_missing")
    return value


def items(value: Any) -> list[Any]:
    """A list, however a form or the JSON of it was written."""
    return list(value.values()) if isinstance(value, dict) else list(value or [])
