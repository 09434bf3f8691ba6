"""Behind port 4000: cargo-lambda's router and Runtime API, and the functions.

`cargo lambda watch --only-lambda-apis` routes requests and hands them to
whoever polls its Runtime API. The prebuilt binaries are started beside it, each
with the environment of its deployed twin. A request that no route names goes to
the function `_`, so a process of the fallback polls for that one: it answers
unknown paths, wrong methods and preflights alike.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import build
import bundle
import cloudformation
import deploy
from cloudformation import FALLBACK, Route
from servers.aws.permissions import access_key
from settings import VENV, Profile, processes_of
from supervision import FUNCTION, Program

UNROUTED = "_"


def programs(profile: Profile) -> list[Program]:
    """Every process of every function of the API."""
    environments = deploy.environments(profile)
    found = []
    for name in sorted({route.function for route in cloudformation.routes(cloudformation.template())}):
        for number in range(1, processes_of(name) + 1):
            found.append(_process(profile, name, name, number, environments[name]))
    for number in range(1, processes_of(FALLBACK) + 1):
        found.append(_process(profile, FALLBACK, UNROUTED, number, environments[FALLBACK]))
    return found


def router(profile: Profile) -> Program:
    """The router with the template's routes. A change of routes restarts it."""
    manifest = router_manifest(cloudformation.routes(cloudformation.template()))
    folder = profile.dir / "router"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Cargo.toml").write_text(manifest)
    (folder / "main.rs").write_text("fn main() {}\n")
    return Program(
        "router",
        [
            str(VENV / "bin" / "cargo-lambda"),
            "lambda",
            "watch",
            "--only-lambda-apis",
            "--disable-cors",
            "--invoke-address",
            "127.0.0.1",
            "--invoke-port",
            str(profile.port("runtime")),
        ],
        # The routes are in a file, so their digest has to say that they changed.
        {"ROUTES_SHA256": bundle.digest(manifest.encode())},
        folder,
        priority=30,
    )


def router_manifest(routes: list[Route]) -> str:
    """A manifest that names the functions and the routes, and builds nothing.

    cargo-lambda reads both from a workspace. The project's own would do, but
    then an edit that breaks its manifest for a moment would take port 4000 down.
    """
    lines = ["[workspace]", "[package]", 'name = "router"', 'edition = "2024"', "autobins = false"]
    for name in sorted({route.function for route in routes}):
        lines += ["[[bin]]", f"name = {json.dumps(name)}", 'path = "main.rs"']
    return "\n".join(lines) + "\n" + router_section("package.metadata.lambda.watch.router", routes)


def router_section(name: str, routes: list[Route]) -> str:
    """The routes in cargo-lambda's words, as a TOML table."""
    lines = [f"[{name}]"]
    for path in sorted({route.path for route in routes}):
        methods = [route for route in routes if route.path == path]
        targets = ", ".join(f'{{ method = "{route.method}", function = "{route.function}" }}' for route in methods)
        lines.append(f"{json.dumps(path)} = [{targets}]")
    return "\n".join(lines) + "\n"


def environment(profile: Profile, name: str, variables: dict[str, str]) -> dict[str, str]:
    """What Lambda would give a deployed function, with this stack's addresses."""
    return {
        **variables,
        **deploy.CREDENTIALS,
        # Its role holds here as it does behind the emulator's API Gateway.
        "AWS_ACCESS_KEY_ID": access_key(f"{profile.stack_name}-{name}"),
        "AWS_ENDPOINT_URL": profile.url("aws"),
        "AWS_LAMBDA_FUNCTION_NAME": f"{profile.stack_name}-{name}",
        "AWS_LAMBDA_FUNCTION_VERSION": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": profile.url("traces"),
        # The router is the one proxy in front of a function here.
        "TRUSTED_PROXIES": "1",
    }


def _process(profile: Profile, name: str, queue: str, number: int, variables: dict[str, str]) -> Program:
    door = "runtime" if name in cloudformation.streamed(cloudformation.template()) else "replies"
    return Program(
        f"{FUNCTION}{name}-{number}",
        [str(_installed(profile, name))],
        {
            **environment(profile, name, variables),
            "AWS_LAMBDA_RUNTIME_API": f"{profile.url(door)}/.rt/{queue}",
            # New code under the same path has to look like a change.
            "CODE_SHA256": build.code_hash(name),
        },
        profile.dir,
        stop_seconds=5,
        priority=40,
    )


def _installed(profile: Profile, name: str) -> Path:
    """A copy of the deployed binary, so that a later build does not swap it under a running process."""
    target = profile.dir / "functions" / name
    stamp = target.with_suffix(".sha256")
    wanted = build.code_hash(name)
    if not (target.exists() and stamp.exists() and stamp.read_text() == wanted):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copy(build.binary(name), partial)
        os.replace(partial, target)
        stamp.write_text(wanted)
    return target
