"""The stack's modules are imported as they import each other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".local" / "tools" / "stripe-world"))

from emulator import Emulator
from stripe_server import Receiver, Replica


@pytest.fixture(scope="session")
def stripe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica that every test shares: each has customers of its own."""
    replica = Replica(tmp_path_factory.mktemp("stripe"), Receiver())
    yield replica
    replica.stop()


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    """An AWS of the test's own."""
    emulator = Emulator(tmp_path)
    yield emulator
    emulator.kill()
