"""`make watch`: cargo-lambda rebuilds functions on save, beside the running stack.

cargo-lambda starts a function with `cargo run`, with one environment for all.
Cargo in turn starts every binary through a runner, so the runner is where a
function gets the environment of its deployed twin.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import cloudformation
import deploy
import functions
from settings import ROOT, VENV, Profile

PORT = 9000
ENVIRONMENTS = "FUNCTION_ENVIRONMENTS"


def watch(profile: Profile) -> int:
    """Serve the same routes on `WATCH_PORT` until interrupted; a function is built at its first request."""
    port = os.environ.get("WATCH_PORT") or str(PORT + profile.offset)
    environments = {
        name: functions.environment(profile, name, variables)
        for name, variables in deploy.environments(profile).items()
    }
    routes = cloudformation.routes(cloudformation.template())
    target = f"{platform.machine()}-unknown-linux-gnu".upper().replace("-", "_")
    with tempfile.TemporaryDirectory() as folder:
        variables, router = Path(folder) / "environments.json", Path(folder) / "router.toml"
        variables.write_text(json.dumps(environments))
        router.write_text(functions.router_section("watch.router", routes))
        print(f"Functions are rebuilt on save at http://localhost:{port}; Ctrl-C ends it.", flush=True)
        return subprocess.run(
            [
                VENV / "bin" / "cargo-lambda",
                "lambda",
                "watch",
                "--disable-cors",
                "--invoke-address",
                "127.0.0.1",
                "--invoke-port",
                port,
                "--global",
                router,
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "SQLX_OFFLINE": "true",
                ENVIRONMENTS: str(variables),
                # As `cargo dev` builds them.
                "CARGO_BUILD_RUSTFLAGS": "--cfg=dynamic -Cprefer-dynamic",
                f"CARGO_TARGET_{target}_RUNNER": f"{VENV / 'bin' / 'python'} {Path(__file__).resolve()}",
            },
            check=False,
        ).returncode


def run_with_environment(command: list[str]) -> None:
    """Become the function that cargo built, with its own environment added."""
    environments = json.loads(Path(os.environ[ENVIRONMENTS]).read_text())
    # The Runtime API's address, which cargo-lambda has set, must stay.
    own = environments.get(Path(command[0]).name, {})
    os.execve(command[0], command, {**os.environ, **own})


if __name__ == "__main__":
    run_with_environment(sys.argv[1:])
