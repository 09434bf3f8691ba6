"""The commands where the machine does not play along."""

import argparse
import os
import re
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


def test_logs_before_anything_has_run_say_that_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "LOCAL", tmp_path)
    for name, sentence in ((None, "There is no log *.log"), ("auth-me", "There is no log"), ("workers-ingest", "aws")):
        with pytest.raises(settings.Failure, match=re.escape(sentence)):
            stack.logs(settings.PROFILES["stack"], argparse.Namespace(name=name))
