"""`make test`: a stack of its own, every test against it, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil

import build
import deploy
import ports
import services
import stack
import tools
from servers.aws.permissions import REFUSED
from services import CLICKHOUSE_USER
from settings import ADMIN_EMAIL, HERE, ROOT, VENV, Failure, Profile
from supervision import Supervisor

FUZZ = ROOT / "tests" / "fuzz" / "run.sh"
# The load comes last: it uses up what the one administrator may ask in a minute.
OF_NODE = {
    "postman": ["sh", str(ROOT / "tests" / "postman" / "run.sh")],
    "pages": ["node", "--test", str(ROOT / "tests" / "browser" / "pages.test.mjs")],
    "client": ["sh", str(ROOT / "tests" / "client" / "run.sh")],
}
BRIEF_LOAD = {"load, briefly": ["env", "DURATION=8", "sh", str(ROOT / "tests" / "load" / "run.sh")]}
# Long, and about the machine as much as about the code.
BY_HAND = {
    "load": ["sh", str(ROOT / "tests" / "load" / "run.sh")],
    "chaos": [str(VENV / "bin" / "python"), str(ROOT / "tests" / "chaos" / "chaos.py")],
}


def environment(profile: Profile) -> dict[str, str]:
    """Where everything of a running stack is, for tests and for a shell."""
    return {
        "API_URL": profile.url("router"),
        "RUNTIME_URL": profile.url("runtime"),
        "GATEWAY_URL": deploy.gateway_url(profile),
        **deploy.CREDENTIALS,
        "AWS_ENDPOINT_URL": profile.url("aws"),
        "MAIL_OUTBOX_URL": f"{profile.url('aws')}/_ministack/ses/messages",
        "DATABASE_URL": profile.database_url,
        "CLICKHOUSE_URL": profile.url("clickhouse"),
        "CLICKHOUSE_USER": CLICKHOUSE_USER,
        "CLICKHOUSE_PASSWORD": profile.secret("clickhouse"),
        "CLICKHOUSE_DATABASE": "analytics",
        "LLM_URL": profile.url("llm"),
        "STRIPE_URL": profile.url("stripe"),
        "TRACES_URL": profile.url("traces"),
        "STRIPE_WEBHOOK_SECRET": profile.stripe_webhook_secret,
        "STACK_NAME": profile.stack_name,
        "STACK_PROFILE": profile.name,
        "LOCAL_STACK_DIR": str(profile.dir),
        "ADMIN_EMAIL": ADMIN_EMAIL,
        "ADMIN_PASSWORD": profile.admin_password,
    }


def run(profile: Profile) -> int:
    """Build, start afresh, run everything, stop; all suites run even when one fails."""
    if profile.name != "test":
        raise Failure("Tests delete the data of their stack; run them with `--profile test` or `make test`.")
    node = _node_tools()
    build.build()
    _discard(profile)
    try:
        stack.bring_up(profile, with_build=False)
        addresses = environment(profile) | node
        failed = [name for name, command in _suites().items() if not _passes(name, command, addresses)]
        failed += _beyond_the_roles(profile)
    finally:
        # The logs stay for whoever reads the failure.
        Supervisor(profile).shutdown()
        ports.end_leftovers(profile)
        shutil.rmtree(profile.data, ignore_errors=True)
    if failed:
        print(f"\nFailed: {', '.join(failed)}. The stack's logs are in {profile.logs}.", flush=True)
        return 1
    print("\nAll suites passed.", flush=True)
    return 0


def _discard(profile: Profile) -> None:
    """What an interrupted run may have left."""
    Supervisor(profile).shutdown()
    ports.end_leftovers(profile)
    shutil.rmtree(profile.dir, ignore_errors=True)


def _suites() -> dict[str, list[str]]:
    python = str(VENV / "bin" / "python")
    suites = {
        "local stack": [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "tests")],
        "workspace": ["cargo", "dev-test", "--workspace", "--lib", "--tests", "--no-fail-fast"],
    }
    suites |= OF_NODE
    if FUZZ.exists():
        suites["fuzz"] = ["sh", str(FUZZ)]
    return suites | BRIEF_LOAD


def _beyond_the_roles(profile: Profile) -> list[str]:
    """Whether a function did what its role does not allow: code that goes on without it passes its tests."""
    refused = services.aws_state(profile) / REFUSED
    lines = refused.read_text().splitlines() if refused.exists() else []
    for line in lines:
        told = json.loads(line)
        print(f"{told['refusal']}. {told['advice']}", flush=True)
    return ["permissions"] if lines else []


def one(profile: Profile, name: str) -> int:
    """One of the suites that need no compiler, against a stack that runs."""
    commands = OF_NODE | BRIEF_LOAD | BY_HAND
    if name not in commands:
        raise Failure(f"There is no suite {name}; there are {', '.join(commands)}.")
    return 0 if _passes(name, commands[name], environment(profile) | _node_tools()) else 1


def _node_tools() -> dict[str, str]:
    tools.ensure_test_packages()
    return {"CHROMIUM": str(tools.chromium())}


def _passes(name: str, command: list[str], addresses: dict[str, str]) -> bool:
    variables = {
        **addresses,
        # Most tests wait for the stack longer than they compute; of the stack there is one on any machine.
        "RUST_TEST_THREADS": os.environ.get("RUST_TEST_THREADS") or str(min(2 * (os.cpu_count() or 1), 4)),
        # The Stripe replica brings a pytest plugin that needs a newer Python.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return tools.passes(name, command, VENV, variables)
