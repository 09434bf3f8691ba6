"""Install what a bare machine lacks, pinned, into `.local/tools`.

Standard library alone: this runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from settings import BUILD_VENV, HERE, LOCAL, ROOT, SAM_VENV, TOOLS, VENV, Failure

POSTGRES_FOLDERS = Path("/usr/lib/postgresql")


def ensure(building: bool) -> None:
    """Every tool of the native stack; returns at once when all are there."""
    LOCAL.mkdir(exist_ok=True)
    _require_toolchains()
    # On a bare machine both take minutes.
    with _compiling() if building and not VENV.exists() else nullcontext():
        _python(VENV, HERE / "requirements.txt", "emulators, supervisor and build tools")
        _python(SAM_VENV, HERE / "requirements-sam.txt", "SAM CLI")
        _node_packages()
        _stripe_world()
        ensure_postgres()


def ensure_guide(building: bool) -> None:
    """What talks to an AWS account and compiles for it; nothing of the stack."""
    LOCAL.mkdir(exist_ok=True)
    _python(SAM_VENV, HERE / "requirements-sam.txt", "SAM CLI")
    if building:
        _require_cargo()
        if not (VENV / "bin" / "cargo-lambda").exists():
            _python(BUILD_VENV, HERE / "requirements-build.txt", "cargo-lambda and Zig")


@contextmanager
def _compiling() -> Iterator[None]:
    """Compiles meanwhile, and goes on afterwards, unless there is no afterwards."""
    print("Building the functions meanwhile ...", flush=True)
    compiling = compiler()
    try:
        yield
    except BaseException:
        compiling.terminate()
        raise


def compiler() -> subprocess.Popen[bytes]:
    """Compiles the functions; by cargo's own lock, a second one waits for the first."""
    # Queries are checked against the committed descriptions, not a running database.
    environment = {**os.environ, "SQLX_OFFLINE": "true"}
    return subprocess.Popen(["cargo", "build", "--release", "--bins"], cwd=ROOT, env=environment)


def _require_cargo() -> None:
    if not shutil.which("cargo"):
        raise Failure("Rust is needed; install it as https://rustup.rs says, then run the command again.")


def _require_toolchains() -> None:
    _require_cargo()
    if not shutil.which("npm"):
        _debian("nodejs", "npm")


def _python(venv: Path, requirements: Path, what: str) -> None:
    """A virtual environment that holds exactly `requirements`."""
    stamp = venv / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    log = TOOLS / f"install-{venv.name}.log"
    print(f"Installing {what} (about a minute) ...", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    TOOLS.mkdir(parents=True, exist_ok=True)
    made = subprocess.run([sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False)
    if made.returncode:
        _debian("python3-venv")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    # The list is complete, so nothing is resolved; two of the packages state a
    # newer Python than they need (see stripe/downport.py).
    _run(
        [
            venv / "bin" / "pip",
            "install",
            "--no-deps",
            "--ignore-requires-python",
            "--no-input",
            "--disable-pip-version-check",
            "-r",
            requirements,
        ],
        log,
        f"Python packages could not be installed; {log} says why.",
    )
    stamp.write_text(wanted)


def _node_packages() -> None:
    lock = HERE / "package-lock.json"
    stamp = TOOLS / "node_modules" / "installed"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("Installing the model mock ...", flush=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, TOOLS / name)
    log = TOOLS / "install-npm.log"
    _run(["npm", "ci", "--prefix", TOOLS], log, f"npm packages could not be installed; {log} says why.")
    stamp.write_text(wanted)


def _stripe_world() -> None:
    """The Stripe replica is written for a newer Python; rewrite its sources once."""
    target = TOOLS / "stripe-world"
    script = HERE / "servers" / "stripe" / "downport.py"
    stamp = target / "installed"
    wanted = hashlib.sha256(script.read_bytes() + (HERE / "requirements.txt").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    log = TOOLS / "install-stripe.log"
    shutil.rmtree(target, ignore_errors=True)
    _run([VENV / "bin" / "python", script, target], log, f"The Stripe replica could not be prepared; {log} says why.")
    stamp.write_text(wanted)


def ensure_postgres() -> Path:
    """The folder of Postgres's server programs, installed from Debian if need be."""
    found = postgres_programs()
    if found:
        return found
    print("Installing Postgres ...", flush=True)
    # Debian's package would start a server of its own on 5432.
    _debian("postgresql-common")
    settings = Path("/etc/postgresql-common/createcluster.d")
    settings.mkdir(parents=True, exist_ok=True)
    setting = settings / "no-main-cluster.conf"
    setting.write_text("create_main_cluster = false\n")
    try:
        _debian("postgresql")
    finally:
        setting.unlink()
    found = postgres_programs()
    if not found:
        raise Failure("Postgres is needed; install its server and run `make up` again.")
    return found


def postgres_programs() -> Path | None:
    """Where `postgres` and `initdb` are, the newest version first."""
    versions = sorted(POSTGRES_FOLDERS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    if versions:
        return versions[0].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def haproxy() -> Path:
    """HAProxy's program, installed from Debian if need be."""
    # Debian keeps it where only root looks for programs.
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("haproxy", path=path)
    if not found:
        print("Installing HAProxy ...", flush=True)
        _debian("haproxy")
        found = shutil.which("haproxy", path=path)
    if not found:
        raise Failure("HAProxy is missing although it was installed; put `haproxy` on the PATH.")
    return Path(found)


def chromium() -> Path:
    """The browser's program, installed from Debian if need be."""
    found = shutil.which("chromium")
    if not found:
        print("Installing Chromium ...", flush=True)
        _debian("chromium")
        found = shutil.which("chromium")
    if not found:
        raise Failure("Chromium is missing although it was installed; put `chromium` on the PATH.")
    return Path(found)


def ensure_test_packages() -> None:
    """What the tests that are written for Node import: `tests/node_modules`."""
    tests = ROOT / "tests"
    stamp = tests / "node_modules" / "installed"
    wanted = hashlib.sha256((tests / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("Installing what the tests for Node need ...", flush=True)
    log = TOOLS / "install-tests.log"
    _run(["npm", "ci", "--prefix", tests], log, f"npm packages could not be installed; {log} says why.")
    stamp.write_text(wanted)


def passes(name: str, command: list[str], programs: Path, variables: dict[str, str]) -> bool:
    """Whether a check or a suite passes, with programs of this folder before others and these variables; says so."""
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    environment = {
        **os.environ,
        **variables,
        # Queries are checked against the committed descriptions, even where there is a database to ask.
        "SQLX_OFFLINE": "true",
        "PATH": f"{programs / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    print(f"== {name}: {'passed' if code == 0 else 'failed'} in {time.monotonic() - started:.0f} s", flush=True)
    return code == 0


def _debian(*packages: str) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failure(f"{packages[0]} is missing; install {', '.join(packages)} and run `make up` again.")
    TOOLS.mkdir(parents=True, exist_ok=True)
    log = TOOLS / "install-debian.log"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    message = f"Debian packages could not be installed; {log} says why."
    _run(["apt-get", "update", "-q"], log, message, environment)
    _run(["apt-get", "install", "-qy", "--no-install-recommends", *packages], log, message, environment)


def _run(command: list, log: Path, message: str, environment: dict[str, str] | None = None) -> None:
    with log.open("ab") as file:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise Failure(message)
