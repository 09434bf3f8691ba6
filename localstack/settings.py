"""Where the local stack lives and which ports it takes.

Two stacks share one machine: ``stack``, which a developer works with, and
``test``, which a test run makes afresh and throws away. They differ in nothing
but the numbers and names below.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "localstack"
DEPLOY = ROOT / "deploy"
LOCAL = ROOT / ".local"
TOOLS = LOCAL / "tools"
VENV = TOOLS / "venv"
SAM_VENV = TOOLS / "sam"
# What cross-compiles a deploy where the stack's own tools, which can do it too, were never installed.
BUILD_VENV = TOOLS / "build"
REGION = "us-east-1"

# Names that a person types after `make logs NAME=` or `stack.py kill`.
PORTS = {
    "router": 4000,
    "runtime": 4001,
    "replies": 4002,
    "supervisor": 4009,
    "llm": 4010,
    "stripe": 4020,
    "traces": 4318,
    "aws": 4566,
    "postgres": 5433,
    "clickhouse": 8124,
}

# Processes that serve port 4000, where one would make callers wait. Lambda gives
# each request that runs at the same time a sandbox of its own.
PROCESSES = {"chat-send": 8, "auth-me": 2}


class Failure(Exception):
    """Something that the reader has to do, in one sentence."""


@dataclass(frozen=True)
class Profile:
    """One stack: its name in CloudFormation, its folder, its ports."""

    name: str
    stack_name: str
    port_offset: int
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def dir(self) -> Path:
        """Everything that this stack writes."""
        return LOCAL / self.name

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.dir / "log"

    @property
    def data(self) -> Path:
        """What `make reset` deletes."""
        return self.dir / "data"

    @property
    def offset(self) -> int:
        """How far the ports of this stack are moved; `PORT_OFFSET=1000` moves all of a checkout's stacks."""
        return self.port_offset + int(os.environ.get("PORT_OFFSET", "0"))

    def port(self, service: str) -> int:
        """The port of a service on 127.0.0.1."""
        return PORTS[service] + self.offset

    def url(self, service: str) -> str:
        """The base URL of an HTTP service, without a slash at the end."""
        return f"http://127.0.0.1:{self.port(service)}"

    def secret(self, name: str) -> str:
        """A password of this stack, generated at its first use and kept."""
        return _kept_secret(self.dir / "secrets" / name)

    @property
    def database_url(self) -> str:
        """Postgres, as the functions connect to it."""
        return f"postgres://app:{self.secret('postgres')}@127.0.0.1:{self.port('postgres')}/app"

    @property
    def admin_password(self) -> str:
        """The seeded administrator's, kept where a person finds it."""
        shared = LOCAL / "admin-password"
        return _kept_secret(shared if self.name == "stack" else self.dir / "admin-password")

    @property
    def stripe_webhook_secret(self) -> str:
        """What the Stripe replica signs its webhooks with."""
        shared = LOCAL / "stripe-webhook-secret"
        path = shared if self.name == "stack" else self.dir / "stripe-webhook-secret"
        return _kept_secret(path, prefix="whsec_")


PROFILES = {
    "stack": Profile("stack", stack_name="app", port_offset=0),
    "test": Profile("test", stack_name="test", port_offset=10_000),
}

ADMIN_EMAIL = "admin@example.com"


def processes_of(function: str) -> int:
    """How many processes of a function serve port 4000; `PROCESSES_CHAT_SEND=4` overrides."""
    override = os.environ.get(f"PROCESSES_{function.upper().replace('-', '_')}")
    return int(override) if override else PROCESSES.get(function, 1)


def dotenv() -> dict[str, str]:
    """The variables of the git-ignored `.env`: real keys that replace the mocks."""
    path = ROOT / ".env"
    if not path.exists():
        return {}
    lines = (line.strip().removeprefix("export ") for line in path.read_text().splitlines())
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, value in pairs if value.strip().strip("'\"")}


def _kept_secret(path: Path, prefix: str = "") -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: where the disk is full an empty password would be kept.
        partial = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(prefix + secrets.token_hex(16) + "\n")
        partial.replace(path)
    return path.read_text().strip()
