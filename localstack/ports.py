"""Who holds a port, and which processes a stack left behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from settings import PORTS, Failure, Profile

# Set for every process of a stack, so that they are found even when their supervisor is gone.
MARK = "LOCAL_STACK_DIR"
LISTENING = "0A"


def require_free(profile: Profile) -> None:
    """Fail with the holder's name when a port of the stack is taken."""
    for service in PORTS:
        port = profile.port(service)
        if not _bindable(port):
            raise Failure(
                f"Port {port} ({service}) is taken{_holder(port)}; stop that process, then run `make up` again."
            )


def end_leftovers(profile: Profile) -> None:
    """End processes of this stack whose supervisor was killed."""
    for pid in _processes():
        if _mark(pid) == str(profile.dir):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _processes() -> Iterator[int]:
    own = os.getpid()
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) != own)


def _mark(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{MARK}=".encode()
    return next((entry[len(prefix) :].decode() for entry in variables if entry.startswith(prefix)), None)


def _holder(port: int) -> str:
    """` by NAME (process PID)`, or nothing where the kernel does not tell."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (row.split() for row in rows):
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for pid in _processes():
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if os.readlink(descriptor) in sockets:
                    return f" by {Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
        except OSError:
            continue
    return ""
