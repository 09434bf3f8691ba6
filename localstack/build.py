"""Build the functions once, and zip them so that an unchanged one stays unchanged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cloudformation
import tools
from bundle import package_all
from settings import ROOT, Failure


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
    changed = package_all({binary(name): archive(name) for name in names})
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


def code_hash(name: str) -> str:
    """Identifies a function's code."""
    return archive(name).with_suffix(".sha256").read_text()
