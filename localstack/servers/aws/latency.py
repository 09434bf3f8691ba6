"""Take out the fixed waits that a local request pays for nothing."""

import asyncio
import contextlib
import http.server
import logging
import socket
import socketserver
from collections.abc import Awaitable, Callable
from typing import Any

from servers.asgi import read_body, reply
from servers.aws.actions import SERVICES

# How long MiniStack may wait for a function's log lines after each reply
# (first line, quiet time after a line, ceiling), in seconds. The published
# 50 ms for the first line is charged to every request whose function logs nothing.
LOG_WAITS = (0.002, 0.002, 0.05)


def apply() -> None:
    """Answer small packets at once, cut the wait for log lines, shorten the way to items, messages and secrets."""
    _answer_at_once()
    import hypercorn.asyncio
    from ministack import app as gateway
    from ministack.core import lambda_runtime

    for member in vars(lambda_runtime).values():
        if isinstance(member, type) and "_drain_stderr_bounded" in vars(member):
            member._drain_stderr_bounded.__defaults__ = LOG_WAITS
    gateway.app = _Shortcut(gateway.app, gateway)
    # MiniStack imports its server when it starts.
    hypercorn.asyncio.serve = _serve


def _answer_at_once() -> None:
    """The Runtime API of each function: no Nagle, no delayed acknowledgement.

    Together they cost 40 ms an invocation, since a function's HTTP client
    writes head and body in two packets.
    """
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True
    socketserver.StreamRequestHandler.wbufsize = -1
    handle = http.server.BaseHTTPRequestHandler.handle_one_request

    def handle_one_request(self: http.server.BaseHTTPRequestHandler) -> None:
        # The peer may have gone; the handler finds that out itself.
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        handle(self)

    http.server.BaseHTTPRequestHandler.handle_one_request = handle_one_request


async def _serve(app: Callable[..., Awaitable[None]], config: Any) -> None:
    """By uvicorn, whose parser is written in C: a third of the processor time of the published server."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(_Together(transport, self.loop))

    host, _, port = config.bind[0].rpartition(":")
    await uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=int(port),
            http=Protocol,
            ws="none",
            lifespan="on",
            timeout_keep_alive=int(config.keep_alive_timeout),
            server_header=False,
            date_header=False,
            access_log=False,
            log_level=logging.WARNING,
        )
    ).serve()


class _Together:
    """A transport that sends in one packet what is written in one turn of the loop: a reply's head with its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            self._transport.write(b"".join(self._written))
            self._written.clear()


class _Shortcut:
    """Hands calls on items, messages and secrets to their service.

    On the published way, which looks for virtual hosts, presigned URLs and
    permissions, a call takes three times as long as its work.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], gateway: Any) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        service = self._service(scope)
        if service is None:
            await self._app(scope, receive, send)
            return
        gateway = self._gateway
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        async with gateway._get_reset_lock():
            pass
        if key := gateway.extract_access_key_id(headers, {}):
            gateway.set_request_account_id(key)
        gateway.set_request_region(gateway.extract_region(headers, {}))
        body = await read_body(receive)
        if body is None:
            return
        module = gateway._get_module(service)
        status, reply_headers, answer = await module.handle_request("POST", scope["path"], headers, body, {})
        content = answer if isinstance(answer, bytes) else answer.encode()
        reply_headers = {**reply_headers, "Content-Length": len(content)}
        await reply(send, status, ((name, str(value)) for name, value in reply_headers.items()), content)

    def _service(self, scope: dict) -> str | None:
        if scope["type"] != "http" or scope["method"] != "POST" or self._gateway.AUTH:
            return None
        target = next((value for name, value in scope["headers"] if name == b"x-amz-target"), b"")
        return SERVICES.get(target.decode("latin-1").partition(".")[0])
