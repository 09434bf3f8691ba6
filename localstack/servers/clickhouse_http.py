"""ClickHouse's HTTP interface in front of chDB, the ClickHouse engine as a library.

Used where no ``clickhouse`` server is installed. It speaks as much of the
interface as the ``clickhouse`` crate and ``curl`` use: queries with parameters
and settings, inserts in any format (plain or in ClickHouse's compressed
frames), two accounts, and errors with their exception code.

    python -m servers.clickhouse_http PORT DATA_FOLDER   (password in CLICKHOUSE_PASSWORD)

Account ``app`` may do everything, ``reader`` only read, within bounds that it
cannot change; both have the same password. One statement runs at a time: the engine has one session.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import os
import re
import shutil
import socket
import struct
import sys
import threading
import types
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import lz4.block

# URL parameters of the interface itself; every other one is a query setting.
NOT_SETTINGS = {
    "buffer_size", "compress", "database", "decompress", "default_format", "enable_http_compression",
    "password", "query", "query_id", "role", "session_id", "user", "wait_end_of_query",
}  # fmt: skip
# The crate sends this with DESCRIBE, where chDB takes no SETTINGS clause.
IGNORED_SETTINGS = {"describe_include_subcolumns"}
# What an account of a real server has in its settings.
READER_SETTINGS = {"max_execution_time": "10", "max_rows_to_read": "1000000000", "max_memory_usage": "4000000000"}
# What the server takes as the value of a form's field (`http_max_field_value_size`).
MAX_FIELD_BYTES = 128 * 1024

INSERT = re.compile(r"^\s*(INSERT\s+INTO\s+.+?)(?:\s+SETTINGS\s+(.+?))?\s+FORMAT\s+(\w+)\s*;?\s*$", re.S | re.I)
INSERT_TARGET = re.compile(r"^(\s*INSERT\s+INTO\s+\S+(?:\s*\([^)]*\))?)", re.I)
TRAILING_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.I)
TRAILING_SETTINGS = re.compile(r"\bSETTINGS\s+[^()]*$", re.I)
TAKES_SETTINGS = re.compile(r"\s*(SELECT|WITH|INSERT)\b", re.I)
READS = re.compile(r"\s*(SELECT|WITH|SHOW|DESCRIBE|DESC|EXISTS|EXPLAIN)\b", re.I)

AUTHENTICATION_FAILED, READONLY, NO_CODE = 516, 164, 1002
STATUS_BY_CODE = {6: 400, 43: 400, 47: 400, 53: 400, 62: 400, 60: 404, 81: 404, 159: 408, 164: 403, 516: 403}


class Refused(Exception):
    """An error in ClickHouse's words, raised by the front itself."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {text}")


@dataclass
class Statement:
    """One request, taken apart."""

    sql: str
    data: bytes | None = None
    database: str = "default"
    format: str = "TabSeparated"
    settings: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)


class Engine:
    """The one chDB session, one statement at a time."""

    def __init__(self, folder: str, spool: Path) -> None:
        # chDB imports pyarrow for data frames, which nobody here asks for.
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            stand_in = types.ModuleType("pyarrow")
            stand_in.__getattr__ = lambda _: object
            sys.modules["pyarrow"] = stand_in
        from chdb import session

        self._session = session.Session(folder)
        self._lock = threading.Lock()
        self._database = ""
        self._spool = spool

    def run(self, statement: Statement) -> tuple[bytes, int]:
        """The reply's bytes in the wanted format, and the rows that were read for it."""
        with self._lock:
            self._use(statement.database)
            insert = INSERT.match(statement.sql) if statement.data is not None else None
            if insert:
                self._insert(insert, statement)
                return b"", 0
            sql, wanted = statement.sql, statement.format
            trailing = TRAILING_FORMAT.search(sql)
            if trailing and not INSERT_TARGET.match(sql):
                sql, wanted = sql[: trailing.start()], trailing[1]
            sql = with_settings(sql, statement.settings)
            result = self._session.query(sql, wanted, params=statement.parameters or None)
            return (result.bytes(), result.storage_rows_read()) if result is not None else (b"", 0)

    def _use(self, database: str) -> None:
        """The database is state of the session, so it is set under the lock."""
        if database != self._database:
            self._session.query(f"USE `{database}`")
            self._database = database

    def _insert(self, insert: re.Match, statement: Statement) -> None:
        """By way of a file in memory: chDB's streaming insert once gave wrong counts right after."""
        target, own_settings, wanted = insert.groups()
        settings = ", ".join(part for part in (own_settings, clause(statement.settings)) if part)
        path = self._spool / f"{threading.get_ident()}.bin"
        path.write_bytes(statement.data or b"")
        try:
            self._session.query(
                f"{target} FROM INFILE '{path}'" + (f" SETTINGS {settings}" if settings else "") + f" FORMAT {wanted}"
            )
        finally:
            path.unlink()


def clause(settings: dict[str, str]) -> str:
    """Settings as SQL."""
    return ", ".join(f"{name}={literal(value)}" for name, value in settings.items() if name not in IGNORED_SETTINGS)


def literal(value: str) -> str:
    """A setting's value as SQL: as text, which the engine reads by the setting's type."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def with_settings(sql: str, settings: dict[str, str]) -> str:
    """The statement with the request's settings in the place where its kind takes them."""
    extra = clause(settings)
    if not extra or not TAKES_SETTINGS.match(sql):
        return sql
    if INSERT_TARGET.match(sql):
        return INSERT_TARGET.sub(lambda target: f"{target[1]} SETTINGS {extra}", sql)
    sql = sql.rstrip("; \n\t")
    return f"{sql}, {extra}" if TRAILING_SETTINGS.search(sql) else f"{sql} SETTINGS {extra}"


def decompressed(body: bytes) -> bytes:
    """ClickHouse's frames: 16 bytes of checksum, method, size with header, size when plain, block."""
    plain, at = [], 0
    while at < len(body):
        method, size, plain_size = struct.unpack_from("<BII", body, at + 16)
        block = body[at + 25 : at + 16 + size]
        plain.append(block if method == 0x02 else lz4.block.decompress(block, uncompressed_size=plain_size))
        at += 16 + size
    return b"".join(plain)


def form_fields(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a multipart form: how the crate sends bound parameters."""
    head = b"Content-Type: " + content_type.encode() + b"\r\n\r\n"
    parts = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()
    fields = {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True).decode()
        for part in parts
    }
    if any(len(value) > MAX_FIELD_BYTES for value in fields.values()):
        raise Refused(NO_CODE, "HTML Form Exception: Field value too long. (POCO_EXCEPTION)")
    return fields


class Handler(BaseHTTPRequestHandler):
    """One connection; replies are small and wanted at once, so no packet waits for another."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    engine: Engine
    password: str

    def do_GET(self) -> None:
        """`/ping`, or a query in the URL."""
        self._answer()

    do_POST = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        fields = dict(parse_qsl(url.query, keep_blank_values=True))
        try:
            body = self._body()
        except ValueError:
            self.close_connection = True
            return
        if url.path == "/ping" or (not fields and not body):
            self._send(200, b"Ok.\n")
            return
        try:
            account = self._account(fields)
            statement = self._statement(fields, body)
            if account == "reader":
                statement.settings = self._of_reader(statement)
            reply, rows = self.engine.run(statement)
            self._send(200, reply, {"X-ClickHouse-Summary": json.dumps({"read_rows": str(rows)})})
        except Exception as error:  # the engine reports everything as RuntimeError
            self._refuse(str(error))

    def _account(self, fields: dict[str, str]) -> str:
        """Who asks: by ClickHouse's headers, basic authentication or URL parameters."""
        user, password = self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key")
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if user is None and scheme.lower() == "basic":
            user, _, password = base64.b64decode(credentials).decode().partition(":")
        user = user if user is not None else fields.get("user", "")
        password = password if password is not None else fields.get("password", "")
        if user not in ("app", "reader") or password != self.password:
            raise Refused(
                AUTHENTICATION_FAILED,
                f"{user or 'default'}: Authentication failed: password is incorrect, or there is no user with such"
                " name. (AUTHENTICATION_FAILED)",
            )
        return user

    def _of_reader(self, statement: Statement) -> dict[str, str]:
        """The settings of an account with readonly = 1."""
        if not READS.match(statement.sql):
            raise Refused(READONLY, "reader: Cannot execute query in readonly mode. (READONLY)")
        if changed := next(iter(statement.settings.keys() - IGNORED_SETTINGS), None):
            raise Refused(READONLY, f"Cannot modify '{changed}' setting in readonly mode. (READONLY)")
        return READER_SETTINGS

    def _statement(self, fields: dict[str, str], body: bytes) -> Statement:
        content_type = self.headers.get("Content-Type", "")
        if content_type.startswith("multipart/form-data"):
            fields, body = fields | form_fields(content_type, body), b""
        sql, data = fields.get("query"), None
        if sql is None:
            sql = body.decode()
        elif body:
            data = decompressed(body) if fields.get("decompress") == "1" else body
        elif INSERT.match(sql):
            data = b""
        return Statement(
            sql=sql,
            data=data,
            database=fields.get("database") or self.headers.get("X-ClickHouse-Database") or "default",
            format=fields.get("default_format", "TabSeparated"),
            settings={
                name: value
                for name, value in fields.items()
                if name not in NOT_SETTINGS and not name.startswith("param_")
            },
            parameters={name[6:]: value for name, value in fields.items() if name.startswith("param_")},
        )

    def _body(self) -> bytes:
        self._acknowledge_at_once()
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _acknowledge_at_once(self) -> None:
        """Linux falls back to delayed acknowledgement by itself, so this is repeated for each request."""
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _refuse(self, text: str) -> None:
        found = re.search(r"Code: (\d+)", text)
        code = int(found[1]) if found else NO_CODE
        self._send(STATUS_BY_CODE.get(code, 500), text.encode(), {"X-ClickHouse-Exception-Code": str(code)})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-ClickHouse-Server-Display-Name": "chdb",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Only failures are worth a line."""
        if len(args) > 1 and str(args[1]) >= "400":
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    """A thread a connection: clients keep theirs open."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until killed; every acknowledged insert is in the data folder."""
    port, folder = int(sys.argv[1]), sys.argv[2]
    spool = Path("/dev/shm" if os.path.isdir("/dev/shm") else folder) / f"clickhouse-inserts-{port}"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir()
    Handler.engine = Engine(folder, spool)
    Handler.password = os.environ["CLICKHOUSE_PASSWORD"]
    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
