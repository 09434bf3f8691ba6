"""Build the functions once, and zip them so that an unchanged one stays unchanged."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deflate

import cloudformation
import tools
from settings import ROOT, Failure

# CloudFormation sees a new function whenever its zip has other bytes, so the
# archive holds no time of the build.
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
EXECUTABLE = 0o100755


def build() -> None:
    """Every function of the template: `cargo build`, then `target/lambda/<bin>/bootstrap.zip`."""
    started = time.monotonic()
    print("Building the functions (minutes the first time) ...", flush=True)
    if tools.compiler().wait():
        raise Failure("The build failed; the compiler's messages above say where.")
    names = sorted(cloudformation.functions(cloudformation.template()))
    missing = [name for name in names if not binary(name).exists()]
    if missing:
        raise Failure(f"template.yaml names functions without a binary: {', '.join(missing)}.")
    # Compression lets go of the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        changed = sum(pool.map(lambda name: package(binary(name), archive(name)), names))
    print(f"Built {len(names)} functions, {changed} changed, in {time.monotonic() - started:.0f} s.", flush=True)


def target_folder() -> Path:
    """Cargo's output folder."""
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def binary(name: str) -> Path:
    """What cargo built."""
    return target_folder() / "release" / name


def archive(name: str) -> Path:
    """What is deployed: the template's CodeUri."""
    return ROOT / "target" / "lambda" / name / "bootstrap.zip"


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


def code_hash(name: str) -> str:
    """Identifies a function's code."""
    return archive(name).with_suffix(".sha256").read_text()
