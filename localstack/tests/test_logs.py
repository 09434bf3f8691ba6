"""A log that grows too long is set aside under the process that writes it."""

import subprocess

from servers import logs


def test_a_long_log_is_set_aside_and_goes_on(tmp_path):
    long, short = tmp_path / "long.log", tmp_path / "short.log"
    short.write_text("short\n")
    with subprocess.Popen(["/bin/sh", "-c", f'exec cat >>"{long}"'], stdin=subprocess.PIPE) as writer:
        writer.stdin.write(b"before\n" * 100)
        writer.stdin.flush()
        while not (long.exists() and long.stat().st_size == 700):
            assert writer.poll() is None
        logs.shorten(tmp_path, 100)
        writer.stdin.write(b"after\n")
    assert long.read_text() == "after\n"
    assert (tmp_path / "long.log.1").read_text() == "before\n" * 100
    assert short.read_text() == "short\n"
    assert not (tmp_path / "short.log.1").exists()
