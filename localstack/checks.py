"""`make check`: everything that can be said about the code without running it."""

from __future__ import annotations

import os
import subprocess

import cloudformation
import tools
from settings import DEPLOY, HERE, REGION, ROOT, SAM_VENV, TOOLS, VENV, Failure

CARGO_DENY = "0.20.2"


def run() -> int:
    """All checks, also after one failed."""
    _ensure_cargo_deny()
    sam, python = SAM_VENV / "bin", VENV / "bin"
    template = str(cloudformation.TEMPLATE)
    ruff = [str(python / "ruff")]
    sources = [str(HERE), str(DEPLOY), str(ROOT / "tests" / "chaos"), str(ROOT / "tests" / "load")]
    # The advisories are in a database on a host of its own, which not every machine reaches.
    advisories = ["advisories"] if os.environ.get("ADVISORIES") == "1" else []
    checks: dict[str, list[str]] = {
        "format": ["cargo", "fmt", "--all", "--check"],
        "lints": ["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        "routes": ["cargo", "dev-test", "-p", "tests", "--test", "routes"],
        "template (SAM)": [str(sam / "sam"), "validate", "--lint", "-t", template, "--region", REGION],
        "template (cfn-lint)": [str(sam / "cfn-lint"), template],
        "permissions and limits": [str(sam / "python"), str(DEPLOY / "policies.py"), "dev", "prod"],
        "dependencies": ["cargo", "deny", "check", "bans", "licenses", "sources", *advisories],
        "Python": [*ruff, "check", *sources],
        "Python format": [*ruff, "format", "--check", *sources],
    }
    variables = {"SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": REGION}
    failed = [name for name, command in checks.items() if not tools.passes(name, command, TOOLS, variables)]
    if failed:
        print(f"\nFailed: {', '.join(failed)}.")
        return 1
    print("\nAll checks passed.")
    return 0


def _ensure_cargo_deny() -> None:
    """Built from source once; it takes some minutes."""
    program = TOOLS / "bin" / "cargo-deny"
    if (
        program.exists()
        and CARGO_DENY in subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    ):
        return
    print("Building cargo-deny (some minutes, once) ...", flush=True)
    log = TOOLS / "install-cargo-deny.log"
    with log.open("w") as file:
        done = subprocess.run(
            ["cargo", "install", f"cargo-deny@{CARGO_DENY}", "--locked", "--root", TOOLS],
            cwd=TOOLS,
            stdout=file,
            stderr=file,
            check=False,
        )
    if done.returncode:
        raise Failure(f"cargo-deny could not be built; {log} says why.")
