"""Keep web pages away from what is for this machine's programs.

A browser lets any page send simple requests to any address, also to this
machine's own, and what listens there asks for no credential that a page could
not make up: the emulator runs whatever code it is given. But a browser says
for which page it asks, and by which name it has found the address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from servers.asgi import reply

Application = Callable[[dict, Callable, Callable], Awaitable[None]]

# No name server can have others, or names below them, lead here.
NAMES = ("localhost", "127.0.0.1", "::1")
OF_OTHERS = ("cross-site", "same-site")

REFUSAL = b"This is for programs on this machine, under its own names, and not for web pages of others.\n"


class OwnPagesOnly:
    """An ASGI application that answers no page but its own, except where `is_public` says so of a method and a path."""

    def __init__(self, app: Application, is_public: Callable[[str, str], bool]) -> None:
        self._app = app
        self._is_public = is_public

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or self._admits(scope):
            await self._app(scope, receive, send)
            return
        headers = [("content-type", "text/plain"), ("content-length", str(len(REFUSAL)))]
        await reply(send, 403, headers, REFUSAL)

    def _admits(self, scope: dict) -> bool:
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        # A page may have its own name lead here: then it is of the same origin.
        if not _is_of_this_machine(host):
            return False
        if self._is_public(scope["method"], scope["path"]):
            return True
        own = f"http://{host}"
        return headers.get(b"origin", own) == own and headers.get(b"sec-fetch-site") not in OF_OTHERS


def _is_of_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in NAMES or name.endswith(tuple(f".{known}" for known in NAMES))
