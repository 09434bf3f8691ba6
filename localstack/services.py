"""The services that the functions use, as supervised programs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import bundle
import postgres
from settings import HERE, REGION, TOOLS, VENV, Failure, Profile, dotenv
from supervision import Program

PYTHON = str(VENV / "bin" / "python")
CLICKHOUSE_USER = "app"
# Bytes, of some hundred thousand spans.
MOST_TRACES = 64 << 20


def programs(profile: Profile) -> list[Program]:
    """Every service of a stack, in no order: each waits for what it needs by itself."""
    return [
        postgres.program(profile),
        _clickhouse(profile),
        _aws(profile),
        _model_mock(profile),
        _stripe(profile),
        _trace_viewer(profile),
        Program("logs", [PYTHON, "-m", "servers.logs", str(profile.logs)], _code("servers/logs.py"), HERE),
    ]


def _code(*patterns: str) -> dict[str, str]:
    """The fingerprint of the files that a program reads when it starts: with another one it starts anew."""
    files = [file for pattern in patterns for file in sorted(HERE.glob(pattern))]
    return {"CODE_SHA256": bundle.digest(b"".join(file.read_bytes() for file in files))}


def await_ready(profile: Profile) -> None:
    """Until all of them answer, or a sentence about the one that does not."""
    checks: dict[str, Callable[[], bool]] = {
        "postgres": lambda: postgres.ready(profile),
        "clickhouse": lambda: answers(f"{profile.url('clickhouse')}/ping"),
        "aws": lambda: answers(f"{profile.url('aws')}/_ministack/health"),
        "llm": lambda: answers(f"{profile.url('llm')}/health"),
        "stripe": lambda: answers(f"{profile.url('stripe')}/health"),
        # Its page counts all spans; where they are sent to is asked for nothing.
        "traces": lambda: answers(f"{profile.url('traces')}/v1/traces"),
    }
    for name, check in checks.items():
        wait_for(check, 60, f"{name} does not start; {profile.logs / name}.log says why.")


def wait_for(check: Callable[[], bool], seconds: float, failure: str) -> None:
    """Poll until the check holds."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise Failure(failure)
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether somebody answers there, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def ask(url: str, body: dict) -> dict:
    """The JSON that comes of posting JSON; a refusal is its own sentence."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        refusal = json.loads(error.read())
        raise Failure(refusal["detail"] if "detail" in refusal else refusal["error"]["message"]) from None


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _clickhouse(profile: Profile) -> Program:
    """A real server where there is one, the chDB front otherwise."""
    data = profile.data / "clickhouse"
    data.mkdir(parents=True, exist_ok=True)
    server = shutil.which("clickhouse")
    if server:
        configuration = _clickhouse_configuration(profile, data)
        return Program("clickhouse", [server, "server", f"--config-file={configuration}"], folder=data, priority=10)
    return Program(
        "clickhouse",
        [PYTHON, "-m", "servers.clickhouse_http", str(profile.port("clickhouse")), str(data)],
        {
            "CLICKHOUSE_PASSWORD": profile.secret("clickhouse"),
            **_code("servers/clickhouse_http.py", "requirements.txt"),
        },
        HERE,
        stop_signal="KILL",  # the engine has no clean shutdown from outside, and needs none
        priority=10,
    )


def _clickhouse_configuration(profile: Profile, data: Path) -> Path:
    """The least that a real server needs to stand in for the front: one port, the same accounts."""
    password = escape(profile.secret("clickhouse"))
    path = profile.dir / "clickhouse.xml"
    path.write_text(f"""\
<clickhouse>
  <logger><level>warning</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{profile.port("clickhouse")}</http_port>
  <path>{escape(str(data))}/</path>
  <mlock_executable>false</mlock_executable>
  <users>
    <app><password>{password}</password><profile>default</profile><access_management>1</access_management></app>
    <reader><password>{password}</password><profile>readonly</profile></reader>
  </users>
  <profiles>
    <default/>
    <readonly>
      <readonly>1</readonly>
      <max_execution_time>10</max_execution_time>
      <max_rows_to_read>1000000000</max_rows_to_read>
      <max_memory_usage>4000000000</max_memory_usage>
    </readonly>
  </profiles>
</clickhouse>
""")
    path.chmod(0o600)
    return path


def aws_state(profile: Profile) -> Path:
    """Where the emulator keeps what it has."""
    return profile.data / "aws"


def _aws(profile: Profile) -> Program:
    state = aws_state(profile)
    scratch = profile.dir / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    return Program(
        "aws",
        [PYTHON, "-m", "servers.aws"],
        {
            "GATEWAY_PORT": str(profile.port("aws")),
            "BIND_HOST": "127.0.0.1",
            # Queue URLs and the functions' endpoint then name an address, not a name that may be IPv6 first.
            "MINISTACK_HOST": "127.0.0.1",
            "MINISTACK_REGION": REGION,
            "LAMBDA_EXECUTOR": "local",
            "PERSIST_STATE": "1",
            "S3_PERSIST": "1",
            "STATE_DIR": str(state),
            "S3_DATA_DIR": str(state / "s3"),
            "TMPDIR": str(scratch),
            # Listeners on fixed ports that nothing here uses.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "INFO",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            # The functions inherit these two.
            "AWS_ENDPOINT_URL": profile.url("aws"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": profile.url("traces"),
            **_code("servers/aws/*.py", "servers/browsers.py", "requirements.txt"),
        },
        HERE,
        priority=20,
    )


def _model_mock(profile: Profile) -> Program:
    node = shutil.which("node")
    if not node:
        raise Failure("Node.js is needed for the model mock; run `apt-get install nodejs npm`.")
    mock = TOOLS / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    return Program(
        "llm",
        [
            node,
            str(mock),
            "-p",
            str(profile.port("llm")),
            "-f",
            str(HERE / "servers" / "models.json"),
            "--validate-on-load",
            # Tests compare what it remembers with what was billed.
            "--journal-max",
            "20000",
            "--log-level",
            "warn",
        ],
        _code("servers/models.json", "package-lock.json"),
        HERE,
        priority=20,
    )


def _stripe(profile: Profile) -> Program:
    return Program(
        "stripe",
        [PYTHON, "-m", "servers.stripe", str(profile.port("stripe")), str(profile.data / "stripe")],
        {
            "PYTHONPATH": str(TOOLS / "stripe-world"),
            "STRIPE_WEBHOOK_URL": f"{profile.url('router')}/api/billing/webhook",
            "STRIPE_WEBHOOK_SECRET": profile.stripe_webhook_secret,
            **_code("servers/stripe/*.py", "servers/browsers.py", "requirements.txt"),
        },
        HERE,
        priority=20,
    )


def _trace_viewer(profile: Profile) -> Program:
    return Program(
        "traces",
        [str(VENV / "bin" / "tv"), "serve"],
        {
            "TV_PORT": str(profile.port("traces")),
            "TV_DB_PATH": str(_traces(profile)),
            # By itself it tells of each request.
            "RUST_LOG": "warn",
        },
        profile.data,
        priority=20,
    )


def _traces(profile: Profile) -> Path:
    return profile.data / "traces.sqlite3"


def forget_traces(profile: Profile) -> None:
    """Before a start: the viewer keeps every span, and its page takes seconds when there are some hundred thousand."""
    traces = _traces(profile)
    if traces.exists() and traces.stat().st_size > MOST_TRACES:
        for ending in ("", "-wal", "-shm"):
            traces.with_name(traces.name + ending).unlink(missing_ok=True)


def parameters(profile: Profile) -> dict[str, str]:
    """The template's parameters: this stack's services, or the real ones that `.env` has keys for."""
    values = {
        "Stage": "local",
        "Architecture": {"x86_64": "x86_64", "aarch64": "arm64"}[os.uname().machine],
        "DatabaseUrl": profile.database_url,
        "ClickHouseUrl": profile.url("clickhouse"),
        "ClickHouseUser": CLICKHOUSE_USER,
        "ClickHousePassword": profile.secret("clickhouse"),
        "ClickHouseReader": "reader",
        "OpenAiApiKey": "local",
        "OpenAiBaseUrl": profile.url("llm"),
        "AnthropicApiKey": "local",
        "AnthropicBaseUrl": profile.url("llm"),
        "GoogleApiKey": "local",
        "GoogleBaseUrl": profile.url("llm"),
        "StripeSecretKey": "sk_test_local",
        "StripeBaseUrl": profile.url("stripe"),
        "StripeWebhookSecret": profile.stripe_webhook_secret,
    }
    # Tests must neither cost money nor depend on the developer's settings.
    environment = {} if profile.name == "test" else dotenv()
    for variable, key, base_url in (
        ("OPENAI_API_KEY", "OpenAiApiKey", "OpenAiBaseUrl"),
        ("ANTHROPIC_API_KEY", "AnthropicApiKey", "AnthropicBaseUrl"),
        ("GOOGLE_API_KEY", "GoogleApiKey", "GoogleBaseUrl"),
        ("STRIPE_SECRET_KEY", "StripeSecretKey", "StripeBaseUrl"),
    ):
        if variable in environment:
            values[key] = environment[variable]
            del values[base_url]
    for variable, parameter in (
        ("STRIPE_WEBHOOK_SECRET", "StripeWebhookSecret"),
        ("APP_URL", "AppUrl"),
        ("CORS_ALLOWED_ORIGINS", "CorsAllowedOrigins"),
        ("ADMIN_EMAILS", "AdminEmails"),
        ("REQUIRE_EMAIL_VERIFICATION", "RequireEmailVerification"),
    ):
        if variable in environment:
            values[parameter] = environment[variable]
    return values | profile.parameters
