#!/usr/bin/env python3
"""The local stack's commands. `make` is the way in; tests call this file themselves.

python3 localstack/stack.py [--profile stack|test] COMMAND
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tools
from settings import ADMIN_EMAIL, DEPLOY, LOCAL, PROFILES, ROOT, SAM_VENV, VENV, Failure, Profile

# When the command began, be it before the tools were there.
STARTED = float(os.environ.pop("STACK_STARTED", time.monotonic()))


def main() -> int:
    """Run one command; a failure is one sentence and exit code 1."""
    arguments = _arguments()
    profile = PROFILES[arguments.profile]
    try:
        if arguments.command == "reset" and not VENV.exists():
            shutil.rmtree(profile.dir, ignore_errors=True)
            return 0
        if arguments.command == "guide":
            guide(profile, arguments)
        if Path(sys.prefix) != VENV:
            tools.ensure(building=arguments.command in BUILDING)
            # What follows uses packages of the stack's own environment.
            python = str(VENV / "bin" / "python")
            os.execve(python, [python, *sys.argv], {**os.environ, "STACK_STARTED": str(STARTED)})
        with _alone(profile) if arguments.command in CHANGING else nullcontext():
            return COMMANDS[arguments.command](profile, arguments) or 0
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _alone(profile: Profile) -> Iterator[None]:
    """Two commands that change one stack at a time would undo each other's work."""
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / f"{profile.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure("Another command is at work on this stack; run this one when it has ended.") from None
        yield


def up(profile: Profile, _arguments: argparse.Namespace) -> None:
    """Everything, from a bare machine to a served product."""
    bring_up(profile, with_build=True)
    _print_summary(profile, time.monotonic() - STARTED)


def bring_up(profile: Profile, with_build: bool) -> None:
    """Services, functions, schema: each step does only what is still missing."""
    import build
    import deploy
    import front
    import functions
    import ports
    import postgres
    import services
    from supervision import Supervisor

    supervisor = Supervisor(profile)
    if not supervisor.running():
        ports.end_leftovers(profile)
        ports.require_free(profile)
    for folder in (profile.dir, profile.data, profile.logs):
        folder.mkdir(parents=True, exist_ok=True)
    wanted = services.programs(profile)
    if supervisor.running():
        print("The services are running already.", flush=True)
        supervisor.resume()
    else:
        print("Starting the services ...", flush=True)
        services.forget_traces(profile)
        supervisor.apply(wanted)
    services.await_ready(profile)
    postgres.ensure_database(profile)
    if with_build:
        build.build()
    if deploy.deploy(profile, services.parameters(profile)):
        deploy.checkpoint(profile)
        deploy.forget_uploads(profile)
    print("Migrating the databases ...", flush=True)
    print(f"  {json.dumps(deploy.migrate(profile))}", flush=True)
    print("Starting the functions ...", flush=True)
    # Asked of the emulator, which an older version's stack starts anew with what follows.
    deployed = functions.programs(profile)
    # A function that finds no router ends at once, so the router comes first.
    wanted += [functions.router(profile), front.program(profile)]
    polled = [profile.port("runtime"), profile.port("replies")]
    if not all(map(services.listens, polled)):
        supervisor.apply(wanted)
        services.wait_for(
            lambda: all(map(services.listens, polled)),
            30,
            f"The router does not start; router.log or front.log in {profile.logs} says why.",
        )
    supervisor.apply([*wanted, *deployed])
    services.wait_for(
        lambda: services.answers(f"{profile.url('router')}/health"),
        30,
        f"Port {profile.port('router')} does not answer; {profile.logs}/fn-gateway-health-1.log says why.",
    )


def down(profile: Profile, _arguments: argparse.Namespace) -> None:
    """Stop everything; the data stays."""
    import ports
    from supervision import Supervisor

    Supervisor(profile).shutdown()
    ports.end_leftovers(profile)
    print("Stopped. `make up` continues with the same data.")


def reset(profile: Profile, arguments: argparse.Namespace) -> None:
    """Stop everything and delete the data."""
    down(profile, arguments)
    shutil.rmtree(profile.dir, ignore_errors=True)
    print("The data is gone; `make up` starts afresh.")


def status(profile: Profile, _arguments: argparse.Namespace) -> int:
    """One line a process; fails when one of them does not run."""
    from supervision import Supervisor

    supervisor = Supervisor(profile)
    if not supervisor.running():
        print("The stack is down; `make up` starts it.")
        return 1
    records = sorted(supervisor.status(), key=lambda record: record["name"])
    for record in records:
        print(f"{record['name']:36} {record['statename']:10} {record['description']}")
    return 0 if all(record["statename"] == "RUNNING" for record in records) else 1


def logs(profile: Profile, arguments: argparse.Namespace) -> None:
    """Follow the log of one process, or of all."""
    pattern = f"{arguments.name}.log" if arguments.name else "*.log"
    files = sorted(profile.logs.glob(pattern))
    if not files and "workers-" in (arguments.name or ""):
        raise Failure("Workers run in the emulator and write into its log: make logs NAME=aws")
    if not files:
        raise Failure(f"There is no log {pattern} in {profile.logs}; `make status` lists the processes.")
    subprocess.run(["tail", "-n", "50", "-F", *files], check=False)


def build(_profile: Profile, _arguments: argparse.Namespace) -> None:
    """Compile and zip every function."""
    import build as builder

    builder.build()


def migrate(profile: Profile, _arguments: argparse.Namespace) -> None:
    """Run the deployed migration function."""
    import deploy

    _require_running(profile)
    print(json.dumps(deploy.migrate(profile), indent=2))


def invoke(profile: Profile, arguments: argparse.Namespace) -> None:
    """Run a deployed function with its sample event, as the administrator where it needs a person; print the reply."""
    import cloudformation
    import deploy

    _require_running(profile)
    if arguments.name not in cloudformation.functions(cloudformation.template()):
        raise Failure(f"There is no function {arguments.name}; template.yaml names them.")
    sample = ROOT / "events" / f"{arguments.name}.json"
    if not sample.exists():
        raise Failure(f"{sample} is missing; every function has a sample event there.")
    event = json.loads(sample.read_text())
    if "requestContext" in event:
        event["requestContext"]["requestTimeEpoch"] = int(time.time() * 1000)
    if "Authorization" in event.get("headers", {}):
        bearer = f"Bearer {_administrators_token(profile)}"
        event["headers"]["Authorization"], event["multiValueHeaders"]["Authorization"] = bearer, [bearer]
    if "Stripe-Signature" in event.get("headers", {}):
        signed = _signed_by_stripe(profile, event["body"])
        event["headers"]["Stripe-Signature"], event["multiValueHeaders"]["Stripe-Signature"] = signed, [signed]
    reply = deploy.invoke(profile, arguments.name, event)
    print(json.dumps(reply, indent=2, ensure_ascii=False))


def _administrators_token(profile: Profile) -> str:
    """A session of the local administrator: samples carry a token that opens nothing."""
    import services

    person = {"email": ADMIN_EMAIL, "password": profile.admin_password, "transport": "bearer"}
    return services.ask(f"{profile.url('router')}/api/auth/signin", person)["sessionToken"]


def _signed_by_stripe(profile: Profile, body: str) -> str:
    """A signature of this moment, with which Stripe's stand-in signs: the sample's is an old one."""
    import hashlib
    import hmac

    at = int(time.time())
    signed = hmac.new(profile.stripe_webhook_secret.encode(), f"{at}.{body}".encode(), hashlib.sha256)
    return f"t={at},v1={signed.hexdigest()}"


def seed(profile: Profile, arguments: argparse.Namespace) -> None:
    """Fill analytics with a history of so many events."""
    if not arguments.events.isdecimal():
        raise Failure("Say how many events: make seed EVENTS=100000")
    _require_running(profile)
    cargo = ["cargo", "run", "--quiet", "--release", "--package", "bench", "--bin", "bench-seed", "--"]
    command = [*cargo, profile.name, arguments.events]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "SQLX_OFFLINE": "true"}).returncode:
        raise Failure("The history was not written.")


def renew(profile: Profile, arguments: argparse.Namespace) -> None:
    """Move a subscription's customer on to the hour after its period or trial ends, when the renewal is paid."""
    import services

    _require_running(profile)
    wanted = {"subscription": arguments.name, "to": "renewal"}
    answer = services.ask(f"{profile.url('stripe')}/_replica/advance", wanted)
    for event in answer["events"]:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(event['happened']))}  {event['type']}")


def watch(profile: Profile, _arguments: argparse.Namespace) -> int:
    """`cargo lambda watch` beside the stack: rebuilt on save, with the deployed environment."""
    import watching

    _require_running(profile)
    return watching.watch(profile)


def control(profile: Profile, arguments: argparse.Namespace) -> None:
    """Kill, stop or start one process: how tests make things fail."""
    from supervision import Supervisor

    _require_running(profile)
    getattr(Supervisor(profile), arguments.command)(arguments.name)


def environment(profile: Profile, _arguments: argparse.Namespace) -> None:
    """What a test or a shell needs to talk to the stack, as `NAME=value` lines."""
    import testing

    _require_running(profile)
    for name, value in testing.environment(profile).items():
        print(f"{name}={value}")


def test(profile: Profile, _arguments: argparse.Namespace) -> int:
    """Everything that can fail, on a stack of its own."""
    import testing

    return testing.run(profile)


def suite(profile: Profile, arguments: argparse.Namespace) -> int:
    """One suite against the stack that runs."""
    import testing

    _require_running(profile)
    return testing.one(profile, arguments.name)


def check(_profile: Profile, _arguments: argparse.Namespace) -> int:
    """Everything that needs no running stack."""
    import checks

    return checks.run()


def guide(_profile: Profile, arguments: argparse.Namespace) -> None:
    """Become the guide to an AWS account, which needs few of the tools and nothing that runs."""
    tools.ensure_guide(building=arguments.words[:1] == ["deploy"])
    python = str(SAM_VENV / "bin" / "python")
    os.execv(python, [python, str(DEPLOY / "guide.py"), *arguments.words])


def install(_profile: Profile, _arguments: argparse.Namespace) -> None:
    """Install the tools and nothing else."""


def docker(_profile: Profile, arguments: argparse.Namespace) -> None:
    """The same product in containers: up, down, status, logs or reset."""
    import containers

    containers.run(arguments.name)


def _require_running(profile: Profile) -> None:
    from supervision import Supervisor

    if not Supervisor(profile).running():
        raise Failure("The stack is down; run `make up` first.")


def _print_summary(profile: Profile, seconds: float) -> None:
    import deploy

    api = f"http://localhost:{profile.port('router')}"
    print(f"""
Ready in {seconds:.0f} s.

  API                {api}
  API Gateway        {deploy.gateway_url(profile)}
  Mail outbox        {profile.url("aws")}/_ministack/ses/messages
  Traces             {profile.url("traces")}
  Administrator      {ADMIN_EMAIL}, password {profile.admin_password}

Try it:

  curl -s {api}/health
  curl -s -c {LOCAL}/cookies -H 'content-type: application/json' \\
    -d '{{"email":"ada@example.com","password":"correct horse battery"}}' {api}/api/auth/signup
  curl -sN -b {LOCAL}/cookies -H 'content-type: application/json' \\
    -d '{{"message":"AIMOCK:slow","stream":true}}' {api}/api/chat
""")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default=os.environ.get("STACK_PROFILE", "stack"))
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in COMMANDS.items():
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        if name in ("kill", "stop", "start", "invoke", "renew", "docker", "suite"):
            command.add_argument("name")
        elif name == "guide":
            command.add_argument("words", nargs="*")
        elif name == "seed":
            command.add_argument("events")
        elif name == "logs":
            command.add_argument("name", nargs="?")
    return parser.parse_args()


COMMANDS = {
    "up": up, "down": down, "status": status, "logs": logs, "reset": reset, "build": build,
    "migrate": migrate, "invoke": invoke, "seed": seed, "renew": renew, "watch": watch, "env": environment,
    "test": test, "check": check, "kill": control, "stop": control, "start": control, "docker": docker,
    "suite": suite, "tools": install, "guide": guide,
}  # fmt: skip

CHANGING = ("up", "down", "reset", "test")
BUILDING = ("up", "build", "test")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
