"""End the functions that a killed emulator left behind.

A function runs as a child of the emulator, in its process group. After a
``kill -9`` of the emulator its children live on for a moment and could still
finish a batch that the queue is about to deliver again. Real SQS would hide
that batch until its visibility timeout; ending the orphans gives the same
guarantee at once.
"""

import os
import signal
from pathlib import Path


def reap() -> None:
    """Kill functions of the last run, and note this run's process group."""
    note = Path(os.environ["STATE_DIR"]) / "process-group"
    if note.exists():
        for pid in _functions_in_group(int(note.read_text())):
            os.kill(pid, signal.SIGKILL)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(os.getpgid(0)))


def _functions_in_group(group: int) -> list[int]:
    """Processes of ``group`` that are functions; the number may be reused by strangers."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, _, fields = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            if name == "bootstrap" and int(fields.split()[2]) == group:
                found.append(int(entry.name))
        except OSError:
            continue  # ended while we looked
    return found
