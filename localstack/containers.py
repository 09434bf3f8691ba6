"""`make up STACK=docker`: the services in containers, the same template deployed into LocalStack.

Functions run in LocalStack's containers and are reached through its API
Gateway; there is no port 4000 in this variant, replies are not streamed, and
there is no stand-in for Stripe: without a key of its test mode nobody can pay.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import bundle
import deploy
import services
from settings import HERE, ROOT, VENV, Failure, Profile

PROFILE = Profile("docker", stack_name="app", port_offset=0)
COMMANDS = {
    "down": ["down"],
    "status": ["ps"],
    "logs": ["logs", "--follow", "--tail", "50"],
    "reset": ["down", "--volumes"],
}


def run(command: str) -> None:
    """One command of the container variant."""
    if not shutil.which("docker"):
        raise Failure("STACK=docker needs Docker with its compose plugin; without it use plain `make up`.")
    if command == "up":
        _up()
    elif command in COMMANDS:
        _compose(*COMMANDS[command])
    else:
        raise Failure(f"STACK=docker does not know `{command}`; use up, {', '.join(COMMANDS)}.")


def _up() -> None:
    for folder in (PROFILE.data, PROFILE.logs):
        folder.mkdir(parents=True, exist_ok=True)
    _compose("up", "--detach", "--wait")
    _build()
    (PROFILE.data / "deployed").unlink(missing_ok=True)  # LocalStack forgets everything when it stops
    deploy.deploy(PROFILE, _parameters())
    deploy.migrate(PROFILE)
    print(f"""
Ready.

  API Gateway    {deploy.gateway_url(PROFILE)}
  Mail outbox    {PROFILE.url("aws")}/_aws/ses
  Traces         http://localhost:16686
  Administrator  admin@example.com, password {PROFILE.admin_password}

  curl -s {deploy.gateway_url(PROFILE)}/health
""")


def _compose(*arguments: str) -> None:
    environment = {
        **os.environ,
        "POSTGRES_PASSWORD": PROFILE.secret("postgres"),
        "CLICKHOUSE_PASSWORD": PROFILE.secret("clickhouse"),
    }
    command = ["docker", "compose", "--file", HERE / "compose.yaml", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode:
        raise Failure("Docker compose failed; its messages above say why.")


def _build() -> None:
    """Against Amazon Linux's C library, which is older than that of most machines."""
    environment = {**os.environ, "SQLX_OFFLINE": "true", "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    output = ROOT / "target" / "lambda"
    command = ["cargo", "lambda", "build", "--release", "--output-format", "binary", "--lambda-dir", output]
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        raise Failure("The build failed; the compiler's messages above say where.")
    bundle.package_cross_built(output)


def _parameters() -> dict[str, str]:
    """The services by the names that containers know them by."""
    password = PROFILE.secret("postgres")
    values = services.parameters(PROFILE)
    # A provider that `.env` has a key for has no address of ours: the key is for the provider alone.
    mocked = {name for name in ("OpenAiBaseUrl", "AnthropicBaseUrl", "GoogleBaseUrl") if name in values}
    return (
        values
        | dict.fromkeys(mocked, "http://llm:4010")
        | {
            # The container has one account only.
            "ClickHouseReader": "",
            "DatabaseUrl": f"postgres://app:{password}@postgres:5432/app",
            "ClickHouseUrl": "http://clickhouse:8123",
        }
    )
