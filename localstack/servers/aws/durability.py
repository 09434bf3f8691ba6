"""State that outlives ``kill -9``.

Messages, items and sent mails are journaled one by one (``journal``).
Everything else, such as stacks, functions and APIs, changes rarely and is
written as a whole, shortly after it changed and when ``POST /_local/checkpoint``
asks for it. While that is done, which takes a second, no request is answered.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from servers.asgi import reply
from servers.aws import queues
from servers.aws.journal import journal

STORE = "dynamodb"
OUTBOX = "ses"
OUTBOX_PATH = "/v2/email/outbound-emails"
CHECKPOINT_PATH = "/_local/checkpoint"
# Quiet time after a change before the snapshot, in seconds: a deploy is hundreds of changes.
SETTLE_SECONDS = 1.0

# Services whose changes are on disk already, or are no state of theirs.
DURABLE_BY_THEMSELVES = {"dynamodb", "sqs", "s3"}
READS = re.compile(r"(Get|List|Describe|BatchGet|Head|Query|Scan)")


def apply() -> None:
    """Journal DynamoDB's items and the outbox, restore at start, snapshot after changes."""
    from ministack import app as gateway
    from ministack.core import persistence

    persistence.json = _Json()
    # A line for each of fifty services at each snapshot would bury the functions' logs.
    logging.getLogger("persistence").setLevel(logging.WARNING)
    _journal_items()
    _journal_outbox()
    restore_snapshots = gateway._load_persisted_state

    def restore() -> None:
        restore_snapshots()
        queues.restore()
        _restore_items()
        _restore_outbox()

    gateway._load_persisted_state = restore
    gateway.app = _Checkpoints(gateway.app, gateway)


def _owner(table: dict) -> str:
    """A table made again under the same name is another owner."""
    return f"{table['TableArn']}#{table.get('TableId', '')}"


def _journal_items() -> None:
    """Every write of an item goes through these two functions of the emulator."""
    from ministack.services import dynamodb

    set_item, remove_item = dynamodb._set_item, dynamodb._remove_item

    def journaled_set(table: dict, partition: str, sort: str, item: dict) -> Any:
        journal.put(STORE, _owner(table), f"{partition}\0{sort}", [partition, sort, item])
        return set_item(table, partition, sort, item)

    def journaled_remove(table: dict, partition: str, sort: str) -> Any:
        journal.delete(STORE, _owner(table), [f"{partition}\0{sort}"])
        return remove_item(table, partition, sort)

    dynamodb._set_item, dynamodb._remove_item = journaled_set, journaled_remove
    dynamodb._local_set_item = set_item
    snapshot = dynamodb.get_state

    def snapshot_without_items() -> dict:
        """To copy and write all of them took seconds, in which nobody was answered."""
        with dynamodb._lock:
            tables = [table for _, table in dynamodb._tables.all_items()]
            items = [table["items"] for table in tables]
            try:
                for table in tables:
                    table["items"] = {}
                return snapshot()
            finally:
                for table, its_items in zip(tables, items, strict=True):
                    table["items"] = its_items

    dynamodb.get_state = snapshot_without_items


def _restore_items() -> None:
    """The journal is newer than the snapshot, so a table's items are taken from it alone."""
    from ministack.services import dynamodb

    for _, table in dynamodb._tables.all_items():
        table["items"].clear()
        table["ItemCount"] = 0
        for _, (partition, sort, item) in journal.load(STORE, _owner(table)):
            dynamodb._local_set_item(table, partition, sort, item)
    journal.keep_only(STORE, [_owner(table) for _, table in dynamodb._tables.all_items()])


class _Json:
    """The module, but ``dump`` encodes in C, as ``dumps`` does, instead of piece by piece in Python."""

    def __getattr__(self, name: str) -> Any:
        return getattr(json, name)

    @staticmethod
    def dump(data: Any, file: Any, **options: Any) -> None:
        file.write(json.dumps(data, **options))


class _Outbox(list):
    """The mails of one account and region, oldest first."""

    def append(self, mail: dict) -> None:
        """Every mail that is sent comes this way."""
        journal.put(OUTBOX, OUTBOX, mail["MessageId"], mail)
        super().append(mail)


def _journal_outbox() -> None:
    """The published snapshot of SES leaves out the mails that were sent."""
    from ministack.services import ses, ses_v2

    def sent_emails_list() -> list:
        if "entries" not in ses._sent_emails:
            ses._sent_emails["entries"] = _Outbox()
        return ses._sent_emails["entries"]

    ses._sent_emails_list = ses_v2._sent_emails_list = sent_emails_list


def _restore_outbox() -> None:
    """There is one account and one region, those of a start without a request."""
    from ministack.services import ses

    ses._sent_emails["entries"] = _Outbox(mail for _, mail in journal.load(OUTBOX, OUTBOX))


class _Checkpoints:
    """The emulator's ASGI application, followed by a snapshot when something changed."""

    def __init__(self, app: Callable[..., Awaitable[None]], gateway: Any) -> None:
        self._app = app
        self._gateway = gateway
        self._pending: asyncio.TimerHandle | None = None

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and scope["path"] == CHECKPOINT_PATH:
            self._save()
            await reply(send, 204, [], b"")
            return
        await self._app(scope, receive, send)
        if scope["type"] == "http" and _changes_state(scope):
            self._schedule()

    def _schedule(self) -> None:
        if self._pending:
            self._pending.cancel()
        self._pending = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._save)

    def _save(self) -> None:
        """On the event loop, so that no request changes what is being written."""
        self._pending = None
        from ministack.core.persistence import save_all

        save_all(self._gateway._build_persistence_save_dict())


def _changes_state(scope: dict) -> bool:
    """Whether a request may have changed something that only a snapshot keeps."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    credential = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", headers.get("authorization", ""))
    if not credential or credential[1] in DURABLE_BY_THEMSELVES or scope["method"] in ("GET", "HEAD"):
        return False
    if scope["path"] == OUTBOX_PATH:
        return False
    operation = headers.get("x-amz-target", "").rpartition(".")[2]
    return not READS.match(operation) and not scope["path"].endswith("/invocations")
