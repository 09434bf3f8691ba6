"""A function's zip: the same bytes for the same code, whoever builds it."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deflate

# CloudFormation sees a new function whenever its zip has other bytes, so the
# archive holds no time of the build.
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
EXECUTABLE = 0o100755


def package_all(executables: dict[Path, Path]) -> int:
    """Zip executables, each into its archive; how many zips are other ones than before."""
    # Compression lets go of the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(package, executables, executables.values()))


def package_cross_built(folder: Path) -> None:
    """Zip what `cargo lambda build` has left as `<function>/bootstrap`, beside it and in its place."""
    executables = {executable: executable.with_name("bootstrap.zip") for executable in folder.glob("*/bootstrap")}
    package_all(executables)
    for executable in executables:
        executable.unlink()


def package(executable: Path, target: Path) -> bool:
    """Zip an executable as `bootstrap`; False when the zip holds it already."""
    stamp = target.with_suffix(".sha256")
    content = executable.read_bytes()
    wanted = digest(content)
    if _holds(target, content) and stamp.exists() and stamp.read_text() == wanted:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    entry = zipfile.ZipInfo("bootstrap", FIXED_TIME)
    entry.external_attr = EXECUTABLE << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    # Two stacks may be brought up at once; each writes a file of its own and the last one stays.
    partial = target.with_suffix(f".{os.getpid()}")
    with zipfile.ZipFile(partial, "w") as zipped, zipped.open(entry, "w") as member:
        # Without this name, which is not for others, the zip would be made by zlib.
        member._compressor = _Whole()
        member.write(content)
    partial.replace(target)
    stamp.write_text(wanted)
    return True


class _Whole:
    """libdeflate, which takes all at once, in the place of zlib's compressor."""

    # As fast as zlib's levels 7 to 9, and a thirtieth smaller than any of them; beyond it there is little to gain.
    LEVEL = 10

    def __init__(self) -> None:
        self.content = bytearray()

    def compress(self, content: bytes) -> bytes:
        self.content += content
        return b""

    def flush(self) -> bytes:
        return bytes(deflate.deflate_compress(bytes(self.content), self.LEVEL))


def _holds(target: Path, content: bytes) -> bool:
    """Whether that is what is zipped: the build of a deploy, for other machines, leaves its zips in the same place."""
    try:
        with zipfile.ZipFile(target) as zipped:
            entries = [(entry.filename, entry.CRC) for entry in zipped.infolist()]
    except (FileNotFoundError, zipfile.BadZipFile):
        return False
    return entries == [("bootstrap", zlib.crc32(content))]


def digest(content: bytes) -> str:
    """The fingerprint by which a change is noticed."""
    return hashlib.sha256(content).hexdigest()
