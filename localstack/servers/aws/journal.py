"""What SQS and DynamoDB have acknowledged, kept in one SQLite file.

MiniStack holds everything in memory and writes it down when it is shut down
cleanly. A message or an item that was acknowledged must outlive a ``kill -9``
as well, so each change is written here before its reply is sent. SQLite in WAL
mode without fsync survives the death of the process (not of the machine) and
costs some 20 microseconds a change.
"""

import base64
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Rows of JSON by (store, owner, key): a queue's messages, a table's items."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS entries"
            " (store TEXT, owner TEXT, key TEXT, value TEXT, PRIMARY KEY (store, owner, key))"
        )

    def put(self, store: str, owner: str, key: str, value: Any) -> None:
        """Write one entry, replacing what had its key."""
        row = (store, owner, key, json.dumps(value, default=_encode))
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row)

    def delete(self, store: str, owner: str, keys: Iterable[str]) -> None:
        """Remove entries in one transaction."""
        rows = [(store, owner, key) for key in keys]
        with self._lock:
            self._database.execute("BEGIN")
            self._database.executemany("DELETE FROM entries WHERE store = ? AND owner = ? AND key = ?", rows)
            self._database.execute("COMMIT")

    def load(self, store: str, owner: str) -> Iterator[tuple[str, Any]]:
        """Every entry of one owner in the order of writing."""
        with self._lock:
            rows = self._database.execute(
                "SELECT key, value FROM entries WHERE store = ? AND owner = ? ORDER BY rowid", (store, owner)
            ).fetchall()
        return ((key, json.loads(value, object_hook=_decode)) for key, value in rows)

    def keep_only(self, store: str, owners: Iterable[str]) -> None:
        """Forget owners that no longer exist, such as a deleted table."""
        known = list(owners)
        marks = ", ".join("?" * len(known))
        with self._lock:
            self._database.execute(f"DELETE FROM entries WHERE store = ? AND owner NOT IN ({marks})", (store, *known))


def _encode(value: object) -> object:
    if isinstance(value, (bytes, bytearray)):
        return {"__bytes__": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot be journaled")


def _decode(value: dict) -> object:
    return base64.b64decode(value["__bytes__"]) if value.keys() == {"__bytes__"} else value


journal = Journal(Path(os.environ["STATE_DIR"]) / "journal.sqlite3")
