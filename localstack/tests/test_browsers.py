"""What a web page may ask of the local services, by what its browser says of it."""

import asyncio
from typing import Any

import pytest

from servers.browsers import OwnPagesOnly

HOST = "127.0.0.1:4566"
# The names that programs of this machine use, with those that AWS's clients and MiniStack put before them.
OWN = [
    HOST,
    "localhost:4566",
    "LOCALHOST",
    "[::1]:4566",
    "bucket.s3.localhost:4566",
    "a1b2c3d4.execute-api.127.0.0.1:4566",
]
OTHERS = [
    "",
    "evil.example:4566",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "0.0.0.0:4566",
    "[::1",
    "notlocalhost",
]


def status(method: str = "POST", path: str = "/", **headers: str) -> int:
    """The status of a request to a service of which `/public` may be read by every page."""
    sent: list[dict[str, Any]] = []

    async def answer(_scope: dict, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    fields = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }
    guarded = OwnPagesOnly(answer, lambda method, path: method == "GET" and path == "/public")
    asyncio.run(guarded(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize("host", OWN)
def test_programs_and_own_pages_are_answered(host: str):
    assert status(host=host) == 200
    assert status(host=host, origin=f"http://{host}".lower(), sec_fetch_site="same-origin") == 200
    assert status("GET", host=host, sec_fetch_site="none") == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:3000", "https://127.0.0.1:4566", "null"])
def test_pages_of_other_origins_are_refused_but_where_all_may_ask(origin: str):
    assert status(origin=origin) == 403
    assert status("OPTIONS", origin=origin) == 403
    assert status("GET", "/public", origin=origin) == 200
    assert status("POST", "/public", origin=origin) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_without_an_origin_tells_whose_it_is_all_the_same(site: str):
    assert status("GET", sec_fetch_site=site) == 403
    assert status("GET", "/public", sec_fetch_site=site) == 200


@pytest.mark.parametrize("host", OTHERS)
def test_under_another_name_nobody_is_answered(host: str):
    assert status("GET", host=host) == 403
    assert status("GET", "/public", host=host) == 403
