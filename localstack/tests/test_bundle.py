"""Zips: the same bytes for the same code, other bytes for other code."""

import os
import zipfile
import zlib

import bundle


def test_zip_is_the_same_whenever_it_is_made(tmp_path):
    executable = tmp_path / "auth-me"
    executable.write_bytes(b"\x7fELF code")
    first, second = tmp_path / "1" / "bootstrap.zip", tmp_path / "2" / "bootstrap.zip"
    bundle.package(executable, first)
    os.utime(executable, (1, 1))
    executable.chmod(0o600)
    bundle.package(executable, second)
    assert first.read_bytes() == second.read_bytes()


def test_zip_holds_an_executable_bootstrap(tmp_path):
    executable = tmp_path / "auth-me"
    executable.write_bytes(b"code")
    target = tmp_path / "out" / "bootstrap.zip"
    bundle.package(executable, target)
    with zipfile.ZipFile(target) as zipped:
        [entry] = zipped.infolist()
        assert (entry.filename, zipped.read(entry)) == ("bootstrap", b"code")
        assert entry.external_attr >> 16 & 0o111 == 0o111


def test_zip_is_smaller_than_zlib_makes_it(tmp_path):
    content = b"".join(str(number * number).encode() for number in range(100_000))
    (tmp_path / "auth-me").write_bytes(content)
    bundle.package(tmp_path / "auth-me", tmp_path / "bootstrap.zip")
    with zipfile.ZipFile(tmp_path / "bootstrap.zip") as zipped:
        assert zipped.read("bootstrap") == content
        assert zipped.getinfo("bootstrap").compress_size < 0.97 * len(zlib.compress(content, 9))


def test_only_changed_code_is_zipped_again(tmp_path):
    executable, target = tmp_path / "auth-me", tmp_path / "bootstrap.zip"
    executable.write_bytes(b"one")
    assert bundle.package(executable, target)
    assert not bundle.package(executable, target)
    executable.write_bytes(b"two")
    assert bundle.package(executable, target)


def test_a_zip_of_another_build_is_replaced(tmp_path):
    executable, ours, target = tmp_path / "auth-me", tmp_path / "1" / "bootstrap.zip", tmp_path / "2" / "bootstrap.zip"
    executable.write_bytes(b"code")
    bundle.package(executable, ours)
    bundle.package(executable, target)
    with zipfile.ZipFile(target, "w") as zipped:
        zipped.writestr("bootstrap", b"code for another processor")
    assert bundle.package(executable, target)
    assert target.read_bytes() == ours.read_bytes()
    target.write_bytes(b"half a zip")
    assert bundle.package(executable, target)
    assert target.read_bytes() == ours.read_bytes()
