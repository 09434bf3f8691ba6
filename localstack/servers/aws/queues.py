"""SQS that loses nothing, and event source mappings that batch as AWS does.

Four shortcomings of the emulator are made good:

- Messages lived in memory alone. Each is now in the journal from the moment it
  is accepted until it is deleted. Receive counts and visibility are not kept:
  after a crash everything undeleted is simply delivered again.
- ``queue["messages"]`` was replaced by consumer threads without the lock that
  a concurrent send would need, so a message could vanish. Every action now
  holds one lock.
- A mapping took at most 10 messages and never waited. It now honours
  ``BatchSize`` (up to 10,000) and ``MaximumBatchingWindowInSeconds``.
- Mappings were served seconds before the port was. A function that begins by
  asking for its secrets then failed, and its batch was out of sight for as long
  as the queue's visibility timeout. They now wait for the port.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable
from functools import wraps
from threading import RLock
from typing import Any

from servers.aws.journal import journal

STORE = "sqs"
MAX_BATCH = 10_000
# An invocation payload is limited to 6 MB; the rest is room for the envelope of each record.
MAX_BATCH_BYTES = 4_000_000

# The emulator's functions that read and replace a queue's messages.
LOCKED_ACTIONS = (
    "_act_send_message",
    "_act_delete_message",
    "_act_delete_message_batch",
    "_act_change_visibility",
    "_act_purge_queue",
    "_collect_msgs",
    "_dlq_sweep",
    "_expire_retained",
    "_refresh_counts",
)


class Messages(list):
    """A queue's messages; every change is journaled."""

    def __init__(self, owner: str, messages: Iterable[dict] = ()) -> None:
        super().__init__(messages)
        self.owner = owner

    def append(self, message: dict) -> None:
        journal.put(STORE, self.owner, message["id"], message)
        super().append(message)

    def remove(self, message: dict) -> None:
        super().remove(message)
        journal.delete(STORE, self.owner, [message["id"]])

    def clear(self) -> None:
        journal.delete(STORE, self.owner, [message["id"] for message in self])
        super().clear()

    def __deepcopy__(self, _memo: dict) -> list:
        return []  # a snapshot needs none: the journal has them


class Queue(dict):
    """A queue record that notices when its messages are replaced by a shorter list."""

    def __init__(self, record: dict) -> None:
        super().__init__(record)
        attributes = record["attributes"]
        # A queue that is deleted and made again must not inherit messages.
        self.owner = f"{attributes['QueueArn']}#{attributes['CreatedTimestamp']}"
        super().__setitem__("messages", Messages(self.owner, record["messages"]))

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "messages":
            if len(value) == len(self["messages"]):
                return  # every replacement in the emulator only drops messages
            kept = {message["id"] for message in value}
            journal.delete(STORE, self.owner, [m["id"] for m in self["messages"] if m["id"] not in kept])
            value = Messages(self.owner, value)
        super().__setitem__(key, value)

    def __deepcopy__(self, memo: dict) -> dict:
        from copy import deepcopy

        return {key: deepcopy(value, memo) for key, value in self.items()}


class QueuesByUrl(dict):
    """The emulator's queue store, turning each record into a ``Queue``."""

    def __setitem__(self, key: Any, record: dict) -> None:
        super().__setitem__(key, record if isinstance(record, Queue) else Queue(record))


def apply() -> None:
    """Lock the actions, journal the messages, batch the mappings."""
    from ministack.services import lambda_svc, sqs

    lambda_svc._poll_loop = _once_served(lambda_svc._poll_loop)
    lock = RLock()
    sqs._queues_lock = lock
    for name in LOCKED_ACTIONS:
        _replace_handler(sqs, name, _with_lock(lock, getattr(sqs, name)))
    sqs._queues._data = QueuesByUrl()
    sqs._receive_messages_for_esm = _receive_for_mapping


def restore() -> None:
    """After a start: the messages of every known queue, from the journal."""
    from ministack.services import sqs

    for scope, record in sqs._queues.all_items():
        queue = Queue({**record, "messages": []})
        stored = (message for _, message in journal.load(STORE, queue.owner))
        dict.__setitem__(queue, "messages", Messages(queue.owner, map(_deliverable, stored)))
        sqs._queues._data[scope] = queue
    journal.keep_only(STORE, [queue.owner for queue in sqs._queues.all_values()])


def _deliverable(message: dict) -> dict:
    """A message as it was sent: whoever had received it is gone."""
    return {**message, "receipt_handle": None}


def _once_served(poll: Callable[[], None]) -> Callable[[], None]:
    @wraps(poll)
    def waiting() -> None:
        port = int(os.environ["GATEWAY_PORT"])
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        poll()

    return waiting


def _with_lock(lock: RLock, action: Callable) -> Callable:
    @wraps(action)
    def locked(*args: Any) -> Any:
        with lock:
            return action(*args)

    return locked


def _replace_handler(module: Any, name: str, replacement: Callable) -> None:
    """Replace a function where it is looked up by name and where it is registered."""
    published = getattr(module, name)
    setattr(module, name, replacement)
    for action, handler in module._HANDLERS.items():
        if handler is published:
            module._HANDLERS[action] = replacement


def _receive_for_mapping(queue_url: str, batch_size: int) -> list[dict]:
    """The next batch of an event source mapping, or nothing while its window is open."""
    from ministack.services import sqs

    wanted = min(int(batch_size or 1), MAX_BATCH)
    with sqs._queues_lock:
        queue = sqs._get_q(queue_url)
        sqs._expire_retained(queue)
        sqs._dlq_sweep(queue)
        now = time.time()
        waiting = [message for message in queue["messages"] if message["visible_at"] <= now]
        if not waiting:
            return []
        count = _fitting(waiting[:wanted])
        window = _batching_window(queue["attributes"]["QueueArn"])
        full = count < len(waiting) or count == wanted
        if not full and now - min(message["visible_at"] for message in waiting) < window:
            return []
        return sqs._collect_msgs(queue, count, int(queue["attributes"].get("VisibilityTimeout", "30")))


def _fitting(messages: list[dict]) -> int:
    """How many of the first messages fit one invocation, at least one."""
    size = 0
    for index, message in enumerate(messages):
        size += len(message["body"])
        if size > MAX_BATCH_BYTES:
            return max(1, index)
    return len(messages)


def _batching_window(queue_arn: str) -> float:
    """Seconds that the mapping of a queue may wait for a batch to fill."""
    from ministack.services import lambda_svc

    return max(
        (
            float(mapping.get("MaximumBatchingWindowInSeconds") or 0)
            for _, _, mapping in lambda_svc._iter_all_esms()
            if mapping.get("EventSourceArn") == queue_arn
        ),
        default=0.0,
    )
