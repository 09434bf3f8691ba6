"""The chDB front, as ClickHouse's own clients use it."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import lz4.block
import pytest

from servers import clickhouse_http

FOLDER = Path(clickhouse_http.__file__).parents[1]


class Client:
    """A ClickHouse account over HTTP."""

    def __init__(self, port, user="app", password="secret"):
        self.url = f"http://127.0.0.1:{port}/"
        self.headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}

    def query(self, sql, **parameters):
        return self.post(sql.encode(), **parameters)

    def post(self, body, content_type="text/plain", **parameters):
        url = f"{self.url}?{urllib.parse.urlencode({'database': 'default', **parameters})}"
        request = urllib.request.Request(url, body, {**self.headers, "Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.read().decode()


class Front:
    """One front on a data folder, which a test may kill and start again."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "servers.clickhouse_http", str(self.port), str(self.folder)],
            cwd=FOLDER,
            env={**os.environ, "CLICKHOUSE_PASSWORD": "secret"},
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the front does not start"
                assert self.process.poll() is None, "the front ended"
                time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    front = Front(tmp_path_factory.mktemp("clickhouse"))
    yield front
    front.kill()


@pytest.fixture
def app(front):
    return Client(front.port)


def failure(call):
    with pytest.raises(urllib.error.HTTPError) as caught:
        call()
    return caught.value.status, caught.value.headers["X-ClickHouse-Exception-Code"]


def test_parameters_and_formats(app):
    sql = "SELECT {n:UInt32} + 1 AS n, {s:String} AS s"
    assert app.query(sql, param_n="41", param_s="it's", default_format="JSONEachRow") == '{"n":42,"s":"it\'s"}\n'
    assert app.query("SELECT 1 AS a FORMAT JSONEachRow") == '{"a":1}\n'


def test_parameters_in_a_form(app):
    body = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in {"query": "SELECT {a:Array(String)}[2]", "param_a": "['x','y']"}.items()
    )
    assert app.post(f"{body}--b--\r\n".encode(), content_type="multipart/form-data; boundary=b") == "y\n"


def test_inserts_are_counted_at_once(app):
    app.query("CREATE TABLE counted (n UInt64) ENGINE = MergeTree ORDER BY n")
    for batch in range(1, 6):
        rows = "".join(f"{n}\n" for n in range(100)).encode()
        app.post(rows, query="INSERT INTO counted(n) FORMAT TSV", insert_deduplication_token=str(batch))
        assert app.query("SELECT count() FROM counted") == f"{batch * 100}\n"


def test_a_repeated_token_is_dropped_in_table_and_view(app):
    for name in ("raw", "view_target"):
        app.query(
            f"CREATE TABLE {name} (n UInt64) ENGINE = MergeTree ORDER BY n"
            " SETTINGS non_replicated_deduplication_window = 100"
        )
    app.query("CREATE MATERIALIZED VIEW view TO view_target AS SELECT n FROM raw")
    for _ in range(3):
        app.post(
            b"1\n2\n",
            query="INSERT INTO raw(n) FORMAT TSV",
            insert_deduplication_token="same",
            deduplicate_blocks_in_dependent_materialized_views="1",
        )
    assert app.query("SELECT (SELECT count() FROM raw), (SELECT count() FROM view_target)") == "2\t2\n"


def test_compressed_inserts(app):
    app.query("CREATE TABLE compressed (s String) ENGINE = MergeTree ORDER BY s")
    plain = b"".join(b"row %d\n" % n for n in range(1000))
    block = lz4.block.compress(plain, store_size=False)
    frame = bytes(16) + struct.pack("<BII", 0x82, len(block) + 9, len(plain)) + block
    app.post(frame * 2, query="INSERT INTO compressed FORMAT TSV", decompress="1")
    assert app.query("SELECT count() FROM compressed") == "2000\n"


def test_databases_are_kept_apart(app):
    app.query("CREATE DATABASE other")
    app.query("CREATE TABLE here (n UInt8) ENGINE = Memory", database="other")
    assert app.query("EXISTS here", database="other") == "1\n"
    assert app.query("EXISTS here") == "0\n"


def test_settings_reach_the_engine(app):
    assert app.query("SELECT getSetting('max_threads')", max_threads="3") == "3\n"
    assert failure(lambda: app.query("SELECT 1", no_such_setting="1")) == (500, "115")


def test_errors_have_status_and_code(app):
    assert failure(lambda: app.query("SELECT * FROM nowhere")) == (404, "60")
    assert failure(lambda: app.query("SELEC 1")) == (400, "62")


def test_strangers_are_refused(front):
    assert failure(lambda: Client(front.port, password="wrong").query("SELECT 1")) == (403, "516")
    assert failure(lambda: Client(front.port, user="nobody").query("SELECT 1")) == (403, "516")


def test_reader_only_reads(front, app):
    reader = Client(front.port, user="reader")
    assert reader.query("SELECT 1") == "1\n"
    app.query("CREATE TABLE kept (n UInt8) ENGINE = MergeTree ORDER BY n")
    for sql in ("DROP TABLE kept", "INSERT INTO kept VALUES (1)", "TRUNCATE TABLE kept"):
        assert failure(lambda sql=sql: reader.query(sql)) == (403, "164")


def test_reader_stays_within_its_bounds(front):
    reader = Client(front.port, user="reader")
    assert reader.query("SELECT getSetting('max_execution_time')") == "10\n"
    assert failure(lambda: reader.query("SELECT 1", max_execution_time="0")) == (403, "164")


def test_long_fields_are_refused(app):
    body = f'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT 1{" " * 131072}\r\n--b--\r\n'
    assert failure(lambda: app.post(body.encode(), content_type="multipart/form-data; boundary=b")) == (500, "1002")


def test_says_how_many_rows_were_read(app):
    app.query("CREATE TABLE many (n UInt64) ENGINE = MergeTree ORDER BY n")
    app.query("INSERT INTO many SELECT number FROM numbers(1000)")
    with urllib.request.urlopen(
        urllib.request.Request(f"{app.url}?database=default", b"SELECT sum(n) FROM many", app.headers), timeout=30
    ) as reply:
        assert json.loads(reply.headers["X-ClickHouse-Summary"])["read_rows"] == "1000"


def test_acknowledged_rows_survive_a_kill(front, app):
    app.query("CREATE TABLE durable (n UInt64) ENGINE = MergeTree ORDER BY n")
    app.post(b"1\n2\n3\n", query="INSERT INTO durable FORMAT TSV")
    front.kill()
    front.start()
    assert app.query("SELECT count() FROM durable") == "3\n"
