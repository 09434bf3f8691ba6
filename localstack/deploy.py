"""Deploy the unchanged template into the stack's AWS, and talk to what it made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import urllib.request
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session

import build
import cloudformation
from settings import ADMIN_EMAIL, REGION, ROOT, SAM_VENV, Failure, Profile

# What any AWS client needs to talk to the emulator.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}
# Longer than any function runs.
INVOKE_SECONDS = 660


def client(profile: Profile, service: str) -> Any:
    """A client of the stack's AWS."""
    return botocore.session.get_session().create_client(
        service,
        region_name=REGION,
        endpoint_url=profile.url("aws"),
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(read_timeout=INVOKE_SECONDS, retries={"total_max_attempts": 1}),
    )


def deploy(profile: Profile, parameters: dict[str, str]) -> bool:
    """Bring the stack to what template, parameters and functions say; False when it was so already."""
    known = cloudformation.parameters(cloudformation.template())
    values = {name: value for name, value in parameters.items() if name in known}
    wanted = _fingerprint(values)
    stamp = profile.data / "deployed"
    if stamp.exists() and stamp.read_text() == wanted and status(profile).endswith("_COMPLETE"):
        print("The deployed stack is up to date.", flush=True)
        return False
    print("Deploying template.yaml ...", flush=True)
    started = time.monotonic()
    log = profile.logs / "deploy.log"
    command = [
        SAM_VENV / "bin" / "sam",
        "deploy",
        "--template-file",
        cloudformation.TEMPLATE,
        "--stack-name",
        profile.stack_name,
        "--region",
        REGION,
        "--resolve-s3",
        "--capabilities",
        "CAPABILITY_IAM",
        "CAPABILITY_NAMED_IAM",
        "CAPABILITY_AUTO_EXPAND",
        "--no-confirm-changeset",
        "--no-fail-on-empty-changeset",
        "--no-progressbar",
        "--parameter-overrides",
        *overrides(values),
    ]
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": profile.url("aws"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAM_CLI_TELEMETRY": "0",
    }
    with log.open("w") as file:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, stdout=file, stderr=file, check=False
        )
    if done.returncode:
        raise Failure(f"The deploy failed; {log} says why.\n{_last_lines(log.read_text())}")
    stamp.write_text(wanted)
    print(f"Deployed in {time.monotonic() - started:.0f} s.", flush=True)
    return True


def overrides(values: dict[str, str]) -> list[str]:
    """The parameters as sam takes them: without the marks a value would end at its first space."""
    return [f'ParameterKey={name},ParameterValue="{value}"' for name, value in values.items()]


def status(profile: Profile) -> str:
    """The stack's status in CloudFormation's words, empty when there is none."""
    try:
        stacks = client(profile, "cloudformation").describe_stacks(StackName=profile.stack_name)["Stacks"]
    except botocore.exceptions.ClientError:
        return ""
    return stacks[0]["StackStatus"] if stacks else ""


def outputs(profile: Profile) -> dict[str, str]:
    """The stack's outputs."""
    stack = client(profile, "cloudformation").describe_stacks(StackName=profile.stack_name)["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def gateway_url(profile: Profile) -> str:
    """The deployed API behind the emulator's API Gateway, by a URL that needs no name server."""
    return f"{profile.url('aws')}/_aws/execute-api/{outputs(profile)['ApiId']}/v1"


def checkpoint(profile: Profile) -> None:
    """Have MiniStack write its state down now."""
    request = urllib.request.Request(f"{profile.url('aws')}/_local/checkpoint", method="POST")
    with urllib.request.urlopen(request, timeout=60):
        pass


def environments(profile: Profile) -> dict[str, dict[str, str]]:
    """The resolved environment and memory of every deployed function, by binary."""
    functions = client(profile, "lambda")
    found = {}
    for name in cloudformation.functions(cloudformation.template()):
        try:
            configuration = functions.get_function_configuration(FunctionName=f"{profile.stack_name}-{name}")
        except functions.exceptions.ResourceNotFoundException as error:
            raise Failure(f"{name} is not deployed; run `make up` first.") from error
        found[name] = {
            **configuration.get("Environment", {}).get("Variables", {}),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(configuration["MemorySize"]),
        }
    return found


def invoke(profile: Profile, name: str, event: Any) -> Any:
    """Run a deployed function once and return its reply."""
    reply = client(profile, "lambda").invoke(
        FunctionName=f"{profile.stack_name}-{name}", Payload=json.dumps(event).encode()
    )
    payload = json.loads(reply["Payload"].read() or b"null")
    if reply.get("FunctionError"):
        text = payload.get("errorMessage", payload) if isinstance(payload, dict) else payload
        raise Failure(f"{name} failed: {text}; {profile.logs / 'aws.log'} has its log.")
    return payload


def migrate(profile: Profile) -> Any:
    """Bring both databases to the newest schema and seed the administrator."""
    event = {"admin": {"email": ADMIN_EMAIL, "password": profile.admin_password}}
    return invoke(profile, "workers-migrate", event)


def forget_uploads(profile: Profile) -> None:
    """Delete what earlier deploys uploaded, 300 MB each; the next one uploads what this template does not name."""
    formation, store = client(profile, "cloudformation"), client(profile, "s3")
    template = json.dumps(formation.get_template(StackName=profile.stack_name)["TemplateBody"])
    for bucket in store.list_buckets()["Buckets"]:
        name = bucket["Name"]
        if not name.startswith("aws-sam-cli-managed-"):
            continue
        for page in store.get_paginator("list_object_versions").paginate(Bucket=name):
            old = [version for version in page.get("Versions", []) if version["Key"] not in template]
            for version in [*old, *page.get("DeleteMarkers", [])]:
                store.delete_object(Bucket=name, Key=version["Key"], VersionId=version["VersionId"])


def _fingerprint(values: dict[str, str]) -> str:
    """Of everything that a deploy depends on."""
    digest = hashlib.sha256(cloudformation.TEMPLATE.read_bytes())
    digest.update(json.dumps(values, sort_keys=True).encode())
    for name in sorted(cloudformation.functions(cloudformation.template())):
        digest.update(build.code_hash(name).encode())
    return digest.hexdigest()


def _last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
