"""The pages that Stripe hosts: to pay, to manage a subscription, to read an invoice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import parse_qsl

from seahaven.ctx import Ctx
from seahaven_stripe_world.stripe_errors import StripeApiError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from servers.stripe import checkout, own, portal
from servers.stripe.world import Refused, StripeWorld

CARDS = {
    "pm_card_visa": "Visa, pays",
    "pm_card_mastercard": "Mastercard, pays",
    "pm_card_chargeDeclined": "declined",
    "pm_card_chargeDeclinedInsufficientFunds": "declined: insufficient funds",
    "pm_card_chargeDeclinedExpiredCard": "declined: expired",
    "pm_card_chargeCustomerFail": "is accepted, later payments fail",
}
STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .5rem .3rem 0; }
fieldset { margin: 1rem 0; } label { display: block; } button { margin-top: .5rem; padding: .4rem 1rem; }
[role=alert] { border-left: .3rem solid #b00020; padding: .2rem .8rem; }
"""


async def show_checkout(request: Request) -> Response:
    """The form of a checkout session, and what follows from it."""
    name = request.path_params["id"]
    form = await _form(request)
    return await _page(request, name, lambda world, ctx: _checkout(world, ctx, name, form))


async def show_portal(request: Request) -> Response:
    """A customer's subscriptions, invoices and card."""
    name = request.path_params["id"]
    form = await _form(request)
    return await _page(request, name, lambda world, ctx: _portal(world, ctx, name, form))


async def show_invoice(request: Request) -> Response:
    """An invoice; one that is open can be paid here."""
    name = request.path_params["id"]
    form = await _form(request)
    return await _page(request, name, lambda world, ctx: _invoice(world, ctx, name, form))


async def invoice_pdf(request: Request) -> Response:
    """The same to keep."""
    name = request.path_params["id"]
    return await _page(request, name, lambda world, ctx: _pdf(world.call(ctx, "GET", f"/v1/invoices/{name}")))


def _checkout(world: StripeWorld, ctx: Ctx, name: str, form: dict[str, str]) -> Response:
    session = own.load(ctx, checkout.KIND, name)
    if session["status"] != "open":
        return _html("Checkout", f"<p>This session is {escape(session['status'])}.</p>", status=410)
    problem = ""
    if form:
        try:
            checkout.complete(world, ctx, name, _card(form), form.get("email", ""))
            return RedirectResponse(session["success_url"].replace("{CHECKOUT_SESSION_ID}", name), 303)
        except Refused as refused:
            problem = str(refused)
    lines = "".join(
        f"<tr><td>{escape(line['description'])}</td><td>{line['quantity']}</td>"
        f"<td>{_money(line['amount_total'], line['currency'])}</td></tr>"
        for line in session["_lines"]
    )
    trial = session["_data"]["subscription"].get("trial_period_days")
    email = "" if session["customer"] else '<label>E-mail <input type="email" name="email" required></label>'
    cancel = session["cancel_url"]
    body = (
        (f"<table><tr><th>What</th><th>How many</th><th>Price</th></tr>{lines}</table>" if lines else "")
        + (f"<p>The first {escape(str(trial))} days are free.</p>" if trial else "")
        + f'<form method="post">{email}{_card_choice()}<button>{"Save" if not lines else "Pay"}</button></form>'
        + (f'<p><a href="{escape(cancel)}">Cancel</a></p>' if cancel else "")
    )
    return _html("Checkout", body, problem)


def _portal(world: StripeWorld, ctx: Ctx, name: str, form: dict[str, str]) -> Response:
    session = own.load(ctx, portal.KIND, name)
    customer = session["customer"]
    problem = ""
    if form:
        try:
            with ctx.db.transaction():
                portal.act(world, ctx, customer, {**form, "card": _card(form)} if "card" in form else form)
            return RedirectResponse(f"/portal/{name}", 303)
        except Refused as refused:
            problem = str(refused)
    query = {"active": True, "type": "recurring", "limit": 100, "expand": ["data.product"]}
    prices = world.call(ctx, "GET", "/v1/prices", query)["data"]
    subscriptions = "".join(_subscription(row, prices) for row in portal.running(world, ctx, customer))
    invoices = world.call(ctx, "GET", "/v1/invoices", {"customer": customer, "limit": 100})["data"]
    rows = "".join(
        f'<tr><td><a href="/invoice/{escape(row["id"])}">{escape(row["number"] or "draft")}</a></td>'
        f"<td>{_day(row['created'])}</td><td>{_money(row['total'], row['currency'])}</td>"
        f"<td>{escape(row['status'])}</td></tr>"
        for row in invoices
    )
    back = session["return_url"]
    body = (
        f"<h2>Subscriptions</h2>{subscriptions or '<p>None.</p>'}"
        f'<h2>Card</h2><form method="post">{_card_choice()}<button name="do" value="card">Use this card</button></form>'
        "<h2>Invoices</h2><table><tr><th>Number</th><th>Date</th><th>Total</th><th>Status</th></tr>"
        f"{rows}</table>" + (f'<p><a href="{escape(back)}">Return</a></p>' if back else "")
    )
    return _html("Billing", body, problem)


def _subscription(row: dict[str, Any], prices: list[dict[str, Any]]) -> str:
    item = row["items"]["data"][0]
    ends = row["cancel_at"]
    until = f"ends on {_day(ends)}" if ends else f"renews on {_day(portal.period_end(row))}"
    others = [price for price in prices if price["id"] != item["price"]["id"]]
    options = "".join(
        f'<option value="{escape(price["id"])}">{escape(price["product"]["name"])}, '
        f"{_money(price['unit_amount'], price['currency'])}</option>"
        for price in others
    )
    switch = (
        f'<label>Plan <select name="price">{options}</select></label><button name="do" value="switch">Switch</button>'
    )
    do, label = ("resume", "Keep it") if ends else ("cancel", "Cancel at the end of the period")
    return (
        f'<form method="post"><input type="hidden" name="subscription" value="{escape(row["id"])}">'
        f"<p>{_money(item['price']['unit_amount'], item['price']['currency'])}, {escape(row['status'])}, {until}</p>"
        f'<button name="do" value="{do}">{label}</button>{switch if options else ""}</form>'
    )


def _invoice(world: StripeWorld, ctx: Ctx, name: str, form: dict[str, str]) -> Response:
    problem = ""
    if form:
        try:
            with ctx.db.transaction():
                customer = world.call(ctx, "GET", f"/v1/invoices/{name}")["customer"]
                path = f"/v1/payment_methods/{_card(form)}/attach"
                method = world.call(ctx, "POST", path, {"customer": customer})["id"]
                world.call(ctx, "POST", f"/v1/invoices/{name}/pay", {"payment_method": method})
            return RedirectResponse(f"/invoice/{name}", 303)
        except Refused as refused:
            problem = str(refused)
    invoice = world.call(ctx, "GET", f"/v1/invoices/{name}")
    lines = "".join(
        f"<tr><td>{escape(line['description'] or '')}</td><td>{_money(line['amount'], line['currency'])}</td></tr>"
        for line in invoice["lines"]["data"]
    )
    pay = f'<form method="post">{_card_choice()}<button>Pay</button></form>' if invoice["status"] == "open" else ""
    body = (
        f"<p>{_day(invoice['created'])}, {escape(invoice['status'])}</p><table>{lines}"
        f"<tr><th>Total</th><th>{_money(invoice['total'], invoice['currency'])}</th></tr></table>{pay}"
        f'<p><a href="/invoice/{escape(name)}/pdf">PDF</a></p>'
    )
    return _html(f"Invoice {escape(invoice['number'] or '')}", body, problem)


def _pdf(invoice: dict[str, Any]) -> Response:
    """One page of plain text."""
    rows = [f"Invoice {invoice['number']}", f"{_day(invoice['created'])}, {invoice['status']}", ""]
    rows += [f"{line['description']}: {_money(line['amount'], line['currency'])}" for line in invoice["lines"]["data"]]
    rows += ["", f"Total: {_money(invoice['total'], invoice['currency'])}"]
    text = "".join(f"({_pdf_text(row)}) Tj T*\n" for row in rows)
    content = f"BT /F1 11 Tf 16 TL 60 780 Td\n{text}ET".encode("cp1252", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    pdf = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(pdf))
        pdf += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(pdf)
    pdf += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    pdf += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    pdf += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return Response(bytes(pdf), media_type="application/pdf")


def _pdf_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


async def _page(request: Request, name: str, make: Callable[[StripeWorld, Ctx], Response]) -> Response:
    world: StripeWorld = request.app.state.world

    def run() -> Response:
        try:
            return world.at_time_of(name, lambda ctx: make(world, ctx))
        except (Refused, StripeApiError):
            return _html("Not found", "<p>There is nothing here.</p>", status=404)

    return await run_in_threadpool(run)


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace")))


def _card(form: dict[str, str]) -> str:
    return form["card"] if form.get("card") in CARDS else "pm_card_visa"


def _card_choice() -> str:
    choices = "".join(
        f'<label><input type="radio" name="card" value="{name}"{" checked" if name == "pm_card_visa" else ""}>'
        f" {escape(what)} <small>{name}</small></label>"
        for name, what in CARDS.items()
    )
    return f"<fieldset><legend>Test card</legend>{choices}</fieldset>"


def _html(title: str, body: str, problem: str = "", status: int = 200) -> HTMLResponse:
    alert = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><main><h1>{title}</h1>{alert}{body}</main></body></html>"
    )
    return HTMLResponse(page, 402 if problem else status)


def _money(amount: int | None, currency: str) -> str:
    return f"{(amount or 0) / 100:.2f} {escape(currency.upper())}"


def _day(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


ROUTES = [
    Route("/checkout/{id}", show_checkout, methods=["GET", "POST"]),
    Route("/portal/{id}", show_portal, methods=["GET", "POST"]),
    Route("/invoice/{id}", show_invoice, methods=["GET", "POST"]),
    Route("/invoice/{id}/pdf", invoice_pdf, methods=["GET"]),
]
