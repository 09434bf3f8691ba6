"""The commands where the machine does not play along."""

import os
import sys
from pathlib import Path

import pytest

import settings
import stack


def test_a_full_disk_is_told_in_a_sentence(monkeypatch, capsys):
    def fail(*_):
        """Always."""
        raise OSError(28, "No space left on device", "target")

    monkeypatch.setattr(stack, "VENV", Path(sys.prefix))
    monkeypatch.setitem(stack.COMMANDS, "status", fail)
    monkeypatch.setattr(sys, "argv", ["stack.py", "status"])
    assert stack.main() == 1
    assert capsys.readouterr().err == "\n[Errno 28] No space left on device: 'target'.\n"


def test_a_password_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    path = tmp_path / "secrets" / "postgres"
    opened = os.open

    def full(*arguments):
        descriptor = opened(*arguments)
        disk = opened("/dev/full", os.O_WRONLY)
        os.dup2(disk, descriptor)
        os.close(disk)
        return descriptor

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            settings._kept_secret(path)
    kept = settings._kept_secret(path)
    assert len(kept) == 32
    assert settings._kept_secret(path) == kept
    assert path.stat().st_mode & 0o777 == 0o600
