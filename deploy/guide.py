"""`make deploy`, `make destroy`, `make redrive`: the template in an AWS account, a step at a time.

Runs in the environment of `localstack/requirements-sam.txt`. Nothing is asked twice: the stack remembers what it was
deployed with. `deploy/<stage>.json` wins over that, and secrets stay in the stack, which sam leaves as they are.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import boto3
import botocore.exceptions
from samtranslator.yaml_helper import yaml_parse

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "localstack"))

import bundle

TEMPLATE = ROOT / "template.yaml"
STAGES = ("dev", "prod")
QUEUES = ("events", "mail", "stripe")
TOOLS = ROOT / ".local" / "tools"
# Asked for at the first deploy of a stage; an empty answer takes the default.
QUESTIONS = {
    "AppUrl": "Origin of the frontend, such as https://app.example.com; docs/frontend.md lists the pages it needs",
    "MailFrom": "Sender of mail, of a domain that is verified in SES",
    "AdminEmails": "Addresses of administrators, with commas",
    "AlarmEmail": "Who is told of alarms, and has to confirm that by the link in SNS's mail within 48 hours",
    "DomainName": "Host name of the API (empty: API Gateway's)",
    "CertificateArn": "Certificate of that name",
    "HostedZoneId": "Route 53 zone of that name (empty: its DNS record is made elsewhere)",
    "ClickHouseUrl": "Base URL of ClickHouse",
    "ClickHouseUser": "User of ClickHouse that may write",
    "ClickHouseReader": "User of ClickHouse that may only read",
    "ClickHouseManageReader": "Whether the migration makes that user (true or false)",
}
OF_A_DOMAIN = ("CertificateArn", "HostedZoneId")
# An empty answer leaves what there is; at the first deploy that is nothing.
SECRETS = {
    "ClickHousePassword": "Password of ClickHouse's users",
    "OpenAiApiKey": "Key of OpenAI, whose models are not available without one",
    "AnthropicApiKey": "Key of Anthropic",
    "GoogleApiKey": "Key of Google",
    "StripeSecretKey": "Secret key of Stripe, without which nobody can pay",
    "StripeWebhookSecret": "Signing secret of Stripe's webhook, without which no webhook is taken",
}

FIRST_FAILED = "The first deploy failed; `make destroy STAGE={stage}` clears away what is left of it."
# States of a stack that no deploy leads out of, and what does.
DEAD_ENDS = {
    "CREATE_FAILED": FIRST_FAILED,
    "ROLLBACK_COMPLETE": FIRST_FAILED,
    "ROLLBACK_FAILED": FIRST_FAILED,
    "DELETE_FAILED": "The stack was deleted in part; CloudFormation's events say what was in the way of the rest, and "
    "`make destroy STAGE={stage}` goes on.",
    "UPDATE_ROLLBACK_FAILED": "A deploy failed and was not taken back; CloudFormation's events say why. Mend that, run "
    "`aws cloudformation continue-update-rollback --stack-name {stack}`, and deploy again.",
}
# What `workers-migrate` says of the store that failed, and what that means.
BEHIND = {
    "the schema of Postgres is not up to date": "Postgres has taken back the migration that failed and keeps those "
    "before it; ClickHouse is as it was.",
    "the schema of ClickHouse is not up to date": "Postgres is migrated and stays so; ClickHouse stopped where it "
    "failed, and figures may be short or fail until it is done.",
}
# What `workers-migrate` says when the schema is newer than its code, as after a deploy of the commit before.
NEWER = ("previously applied but is missing", "which this code is older than")
# What `workers-migrate` reaches the stores by; before a deploy that changes it, it would go to where they were.
REACHED_BY = (
    "DatabaseUrl", "DatabaseSecretArn", "DatabaseSecretKeyArn", "CreateDatabase", "SubnetIds", "SecurityGroupIds",
    "ClickHouseUrl", "ClickHouseUser", "ClickHousePassword", "ClickHouseDatabase", "ClickHouseCluster",
)  # fmt: skip
# Seconds that a function may take to be invocable: one that nobody invoked for weeks has lost its way into the VPC.
READY_WITHIN = 300
# What Lambda neither provisions nor reserves: so much concurrency has to be left for all functions of the account.
KEPT_FREE = 100
# How many functions keep what a parameter says.
RESERVED = {"ChatSendConcurrency": 1, "ChatRegenerateConcurrency": 1, "ChatResumeConcurrency": 2}


class Refused(Exception):
    """Why nothing was done, in one sentence."""


def stack_name(stage: str) -> str:
    """The stack of a stage; one account may hold both."""
    return f"ai-chat-{stage}"


def questions(values: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What has to be asked once these values are known: plain and secret."""
    plain = {name: text for name, text in QUESTIONS.items() if name not in values}
    secret = dict(SECRETS)
    if values.get("CreateDatabase") != "true" and not values.get("DatabaseSecretArn"):
        secret = {"DatabaseUrl": "postgres:// URL of the database", **secret}
    return plain, secret


@cache
def declared() -> dict[str, Any]:
    """The template's parameters."""
    return yaml_parse(TEMPLATE.read_text())["Parameters"]


def check(values: dict[str, str]) -> None:
    """Refuse what CloudFormation would refuse after minutes."""
    known = declared()
    for name, value in values.items():
        if name not in known:
            raise Refused(f"template.yaml has no parameter {name}.")
        allowed = known[name].get("AllowedValues")
        if allowed and value not in [str(item) for item in allowed]:
            raise Refused(f"{name} is one of {', '.join(str(item) for item in allowed)}, not {value}.")
        pattern = known[name].get("AllowedPattern")
        if pattern and not re.fullmatch(pattern, value):
            raise Refused(f"{name} does not match {pattern}.")
        if known[name]["Type"] == "Number" and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            raise Refused(f"{name} is a number, not {value}.")
        if re.search(r'["\\]', value):
            raise Refused(f"{name} has a quotation mark or a backslash, which sam would not pass on.")
    if values.get("Stage") == "local":
        raise Refused("The local stage is for the emulator.")
    if bool(values.get("DomainName")) != bool(values.get("CertificateArn")):
        raise Refused("DomainName and CertificateArn go together.")
    if "AppUrl" in values and not values["AppUrl"].startswith("https://"):
        raise Refused("AppUrl has to be https: cookies are sent over HTTPS only.")
    if values.get("MailFrom", "").endswith("@example.com"):
        raise Refused("MailFrom has to be of a domain that is verified in SES, which example.com never is.")


def check_concurrency(values: dict[str, str], before: dict[str, str]) -> None:
    """Refuse what Lambda would refuse once everything else is made; a new account runs ten sandboxes at once.

    What the stage has already is taken from the account's already.
    """
    provisioned, has = (int(stage.get("ProvisionedConcurrency", 0)) for stage in (values, before))
    if (bound := values.get("ChatSendConcurrency")) and int(bound) < provisioned:
        raise Refused(
            f"ChatSendConcurrency={bound} is a bound on ProvisionedConcurrency={provisioned} as well: write a smaller "
            "ProvisionedConcurrency into the stage's file, 0 for none."
        )
    # What is provisioned is a part of what is reserved.
    wanted = 0 if bound or provisioned <= has else provisioned
    wanted += max(0, reserved(values) - reserved(before))
    if not wanted:
        return
    limits = boto3.client("lambda").get_account_settings()["AccountLimit"]
    if (free := limits["UnreservedConcurrentExecutions"]) < wanted + KEPT_FREE:
        raise Refused(
            f"The account's quota leaves {free} concurrent executions in this region; what is to be provisioned and "
            f"reserved needs {wanted + KEPT_FREE}. Have the quota raised; until then write 0 as ProvisionedConcurrency "
            f'and "" as {", ".join(RESERVED)} into the stage\'s file.'
        )


def reserved(values: dict[str, str]) -> int:
    """The concurrency that a stage keeps for some of its functions."""
    return sum(int(values.get(name) or 0) * functions for name, functions in RESERVED.items())


def check_engine(values: dict[str, str], before: dict[str, str]) -> None:
    """Refuse a version of Aurora that RDS does not make here; one that runs may go on when RDS makes it no more."""

    def engine(parameters: dict[str, str]) -> str | None:
        if parameters.get("CreateDatabase") != "true":
            return None
        return parameters.get("DatabaseEngineVersion", str(declared()["DatabaseEngineVersion"]["Default"]))

    wanted = engine(values)
    if wanted is None or wanted == engine(before):
        return
    pages = boto3.client("rds").get_paginator("describe_db_engine_versions").paginate(Engine="aurora-postgresql")
    made = [version["EngineVersion"] for page in pages for version in page["DBEngineVersions"]]
    if wanted not in made:
        near = [version for version in made if version.split(".")[0] == wanted.split(".")[0]] or made
        raise Refused(
            f"RDS does not make Aurora PostgreSQL {wanted} here: write another DatabaseEngineVersion into the stage's "
            f"file, of {', '.join(near)}."
        )


@contextmanager
def overrides(values: dict[str, str]) -> Iterator[str]:
    """The parameters as sam takes them: in a file of the user alone, since every user sees a process's arguments."""
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        yield f"file://{file.name}"


def of_file(stage: str) -> dict[str, str]:
    """What the stage's file says; numbers and truths as well as texts."""
    try:
        said = json.loads((HERE / f"{stage}.json").read_text())
    except ValueError as error:
        raise Refused(f"deploy/{stage}.json is no JSON: {error}.") from error
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}


def release(values: dict[str, str], anew: bool) -> str:
    """The digest of template, parameters and code, or one that there has never been, as other secrets need it.

    Secrets are no part of it: who may look at the stack may read it.
    """
    digest = hashlib.sha256(secrets.token_bytes() if anew else b"")
    source = yaml_parse(TEMPLATE.read_text())
    defaults = {name: str(parameter.get("Default", "")) for name, parameter in visible(source["Parameters"]).items()}
    digest.update(TEMPLATE.read_bytes() + json.dumps(defaults | values, sort_keys=True).encode())
    for _, resource in sorted(source["Resources"].items()):
        if resource["Type"] == "AWS::Serverless::Function":
            with zipfile.ZipFile(ROOT / resource["Properties"]["CodeUri"]) as code:
                digest.update(code.read("bootstrap"))
    return digest.hexdigest()


def visible(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those of the parameters that an operator sees and sets."""
    return {name: item for name, item in parameters.items() if name != "Release" and not item.get("NoEcho")}


def confirm_destruction(stage: str, answer: Callable[[str], str]) -> None:
    """In prod the stack's name has to be typed."""
    if stage != "prod":
        return
    name = stack_name(stage)
    try:
        typed = answer(f"This deletes production with its queues, tables and secrets. Type {name} to go on: ")
    except EOFError:
        typed = ""
    if typed.strip() != name:
        raise Refused("Nothing was deleted: the name was not typed.")


def deploy(stage: str) -> None:
    """Check, ask, build, migrate, deploy, look."""
    account, region = identity()
    print(f"Account {account}, region {region}, stack {stack_name(stage)}.")
    remembered = deployed(stage)
    # GradualDeployment is not remembered: the deploy before may have gone without.
    usual = {"GradualDeployment": str(declared()["GradualDeployment"]["Default"])}
    values = (remembered or {}) | usual | of_file(stage)
    plain, secret = questions(values)
    for name, text in plain.items():
        if name in OF_A_DOMAIN and not values.get("DomainName"):
            continue
        default = declared()[name].get("Default", "")
        values[name] = input(f"{text} [{default}]: ").strip() or str(default)
    check(values)
    if not values.get("DomainName"):
        print(f"Without DomainName the API is of another site than {values['AppUrl']}: its pages need bearer tokens.")
    check_concurrency(values, remembered or {})
    check_engine(values, remembered or {})
    anew = bool(os.environ.get("ASK_SECRETS"))
    answers = {}
    if remembered is None or anew:
        answers = {name: getpass.getpass(f"{text}: ").strip() for name, text in secret.items()}
    given = {name: answer for name, answer in answers.items() if answer}
    check(given)
    if remembered is None and "DatabaseUrl" in secret and "DatabaseUrl" not in given:
        raise Refused("Without a database nothing works: give its URL, or set CreateDatabase or DatabaseSecretArn.")
    build(values.get("Architecture", "arm64"))
    if values["GradualDeployment"] == "true" and alarmed(stage):
        print("The server-errors alarm is on, which would stop a gradual deploy: this one is for all traffic at once.")
        values["GradualDeployment"] = "false"
    parameters = values | given | {"Release": release(values, anew or rolled_back(stage))}
    confirm = "--confirm-changeset"
    if migrates_first(stage, remembered, values, given):
        show(stage, region, parameters)
        print(f"Schema: {migrate_first(stage, region, values.get('Architecture', 'arm64'))}")
        confirm = "--no-confirm-changeset"
    sam(stage, region, parameters, confirm)
    print(f"Schema: {migrate(stage, region, 'The functions are deployed all the same.')}")
    address, seen = addresses(stage, region)
    smoke(seen)
    print(f"\nThe API is at {address}.")
    for sentence in unheard(stage):
        print(sentence)


def destroy(stage: str) -> None:
    """Delete the stack; Aurora leaves a snapshot."""
    _, region = identity()
    confirm_destruction(stage, input)
    command = [TOOLS / "sam" / "bin" / "sam", "delete", "--stack-name", stack_name(stage), "--region", region]
    protect_database(stage, False)
    try:
        run([*command, *(["--no-prompts"] if stage != "prod" else [])])
    finally:
        # In prod sam asks as well, and succeeds also where the answer is no.
        stack = described(stage)
        if stack and not stack["StackStatus"].startswith("DELETE"):
            protect_database(stage, True)


def protect_database(stage: str, protected: bool) -> None:
    """Have Aurora refuse to be deleted, or not; nothing where the stack has no Aurora."""
    cluster = physical(stage, "DatabaseCluster")
    if cluster is None:
        return
    try:
        boto3.client("rds").modify_db_cluster(DBClusterIdentifier=cluster, DeletionProtection=protected)
    except botocore.exceptions.ClientError as error:
        # Somebody was here before CloudFormation.
        if error.response["Error"]["Code"] != "DBClusterNotFoundFault":
            raise Refused(f"The database's deletion protection could not be changed: {error}.") from error


def physical(stage: str, name: str) -> str | None:
    """What a resource of the template is called in the account; None where the stage has none."""
    try:
        found = boto3.client("cloudformation").describe_stack_resource(
            StackName=stack_name(stage), LogicalResourceId=name
        )["StackResourceDetail"]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise Refused(f"CloudFormation does not tell what {name} is: {error}.") from error
    return None if found["ResourceStatus"] == "DELETE_COMPLETE" else found.get("PhysicalResourceId")


def redrive(queue: str, stage: str | None) -> None:
    """Dead letters back to their queue: SQS does it in AWS, a loop does it in the emulator, which has no such task."""
    local = stage is None
    if local:
        sqs, prefix = emulator_client(), os.environ["STACK_NAME"]
    else:
        identity()
        sqs, prefix = boto3.client("sqs"), stack_name(stage)
    source = sqs.get_queue_url(QueueName=f"{prefix}-{queue}-dlq")["QueueUrl"]
    target = sqs.get_queue_url(QueueName=f"{prefix}-{queue}")["QueueUrl"]
    moved = move(sqs, source, target) if local else moved_by_sqs(sqs, source, target)
    print(f"{moved} messages are back in {queue}.")


def moved_by_sqs(sqs: Any, source: str, target: str, pause: float = 2) -> int:
    """The target is named: SQS does not know where letters come from that a worker sent, and not SQS itself."""
    source, target = (queue_attribute(sqs, queue, "QueueArn") for queue in (source, target))
    sqs.start_message_move_task(SourceArn=source, DestinationArn=target)
    # The newest comes first.
    while (task := sqs.list_message_move_tasks(SourceArn=source, MaxResults=1)["Results"][0])["Status"] == "RUNNING":
        time.sleep(pause)
    moved = task.get("ApproximateNumberOfMessagesMoved", 0)
    if task["Status"] != "COMPLETED":
        reason = task.get("FailureReason", "it does not say why")
        raise Refused(f"SQS moved {moved} messages, then the task was {task['Status'].lower()}: {reason}.")
    return moved


def move(sqs: Any, source: str, target: str) -> int:
    """Each message is sent before it is deleted: at worst twice, which the consumers bear, never lost.

    No more than there are at the start, since what is refused once more comes back at once.
    """
    moved, most = 0, int(queue_attribute(sqs, source, "ApproximateNumberOfMessages"))
    while moved < most and (
        messages := sqs.receive_message(
            QueueUrl=source, MaxNumberOfMessages=min(10, most - moved), WaitTimeSeconds=1, VisibilityTimeout=60,
            MessageAttributeNames=["All"],
        ).get("Messages")
    ):  # fmt: skip
        for message in messages:
            kept = {name: value for name, value in message.get("MessageAttributes", {}).items() if name != "reason"}
            sqs.send_message(QueueUrl=target, MessageBody=message["Body"], MessageAttributes=kept)
            sqs.delete_message(QueueUrl=source, ReceiptHandle=message["ReceiptHandle"])
            moved += 1
    return moved


def queue_attribute(sqs: Any, queue: str, name: str) -> str:
    """One attribute of a queue."""
    return sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=[name])["Attributes"][name]


def emulator_client() -> Any:
    """The running local stack's SQS, by `stack.py env`."""
    stack = ["python3", str(ROOT / "localstack" / "stack.py"), "env"]
    done = subprocess.run(stack, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused("The local stack is down; run `make up`, or name a stage.")
    os.environ.update(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return boto3.client("sqs")


def identity() -> tuple[str, str]:
    """Whose account and which region this is."""
    session = boto3.session.Session()
    if not session.region_name:
        raise Refused("There is no region; set AWS_REGION.")
    if not session.get_credentials():
        raise Refused("There are no AWS credentials; `aws configure sso` or AWS_PROFILE give some.")
    try:
        return session.client("sts").get_caller_identity()["Account"], session.region_name
    except botocore.exceptions.BotoCoreError as error:
        raise Refused(f"AWS does not answer: {error}.") from error
    except botocore.exceptions.ClientError as error:
        raise Refused(f"AWS refuses these credentials: {error}.") from error


def described(stage: str) -> dict[str, Any] | None:
    """The stage's stack as CloudFormation knows it; None where there is none."""
    try:
        stack = boto3.client("cloudformation").describe_stacks(StackName=stack_name(stage))["Stacks"][0]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise Refused(f"CloudFormation does not tell what is deployed: {error}.") from error
    # A change set that nobody executed: the stack is a name with nothing behind it.
    return None if stack["StackStatus"] == "REVIEW_IN_PROGRESS" else stack


def rolled_back(stage: str) -> bool:
    """Whether the last deploy was taken back, whose release Lambda has versions of and would make none again."""
    stack = described(stage)
    return stack is not None and "ROLLBACK" in stack["StackStatus"]


def alarmed(stage: str) -> bool:
    """Whether the alarm is on that takes a gradual deploy back."""
    alarm = physical(stage, "ServerErrorsAlarm")
    if alarm is None:
        return False
    found = boto3.client("cloudwatch").describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    return any(item["StateValue"] == "ALARM" for item in found)


def unheard(stage: str) -> list[str]:
    """Who is not told of alarms: a subscription that nobody confirms is no subscription, and SNS deletes it."""
    topic = physical(stage, "AlarmTopic")
    if topic is None:
        return []
    pages = boto3.client("sns").get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
    found = [subscription for page in pages for subscription in page["Subscriptions"]]
    waiting = [item["Endpoint"] for item in found if item["SubscriptionArn"] == "PendingConfirmation"]
    sentences = [
        f"{endpoint} is told of no alarm before somebody follows the link in the mail that SNS sent there; "
        "48 hours after that mail SNS deletes the subscription."
        for endpoint in waiting
    ]
    if not waiting and not any(item["SubscriptionArn"].startswith("arn:") for item in found):
        sentences.append(
            "Nobody is told of alarms. A deploy does not bring back a subscription that SNS deleted; this does: "
            f"aws sns subscribe --topic-arn {topic} --protocol email --notification-endpoint <address>"
        )
    return sentences


def deployed(stage: str) -> dict[str, str] | None:
    """What the stage was deployed with, but for its secrets; None before its first deploy."""
    stack = described(stage)
    if stack is None:
        return None
    if advice := DEAD_ENDS.get(stack["StackStatus"]):
        raise Refused(advice.format(stage=stage, stack=stack_name(stage)))
    if stack["StackStatus"].endswith("_IN_PROGRESS"):
        raise Refused(f"CloudFormation is at work on the stack ({stack['StackStatus']}); deploy when it has ended.")
    parameters = {item["ParameterKey"]: item.get("ParameterValue", "") for item in stack.get("Parameters", [])}
    return {name: parameters[name] for name in visible(declared()) if name in parameters}


def build(architecture: str) -> None:
    """The functions, cross-compiled, as zips where the template expects them."""
    target = ["--arm64"] if architecture == "arm64" else ["--x86-64"]
    # The stack's tools, or those that were installed for this alone.
    path = os.pathsep.join([str(TOOLS / "venv" / "bin"), str(TOOLS / "build" / "bin"), os.environ["PATH"]])
    command = ["cargo", "lambda", "build", "--release", *target, "--output-format", "binary"]
    # Cargo's own output may go elsewhere, by CARGO_TARGET_DIR or its configuration.
    folder = ROOT / "target" / "lambda"
    run([*command, "--lambda-dir", str(folder)], {**os.environ, "PATH": path, "SQLX_OFFLINE": "true"})
    bundle.package_cross_built(folder)


def migrates_first(
    stage: str, remembered: dict[str, str] | None, values: dict[str, str], given: dict[str, str]
) -> bool:
    """Whether the schema can be new before the functions are; what keeps it from that is said."""
    if remembered is None or physical(stage, "WorkersMigrate") is None:
        return False
    defaults = {name: str(parameter.get("Default", "")) for name, parameter in visible(declared()).items()}
    has, wanted = defaults | remembered, defaults | values
    changed = [name for name in REACHED_BY if name in given or (name in defaults and wanted[name] != has[name])]
    if changed:
        reason = f"This deploy changes {', '.join(changed)}, by which workers-migrate reaches the databases"
    elif os.environ.get("MIGRATE_LAST"):
        reason = "MIGRATE_LAST is set"
    else:
        return True
    print(f"{reason}: it migrates once the functions are new, and what needs the new schema fails until then.")
    return False


def show(stage: str, region: str, values: dict[str, str]) -> None:
    """The change set, so that it is looked at before anything is changed, the databases included.

    It goes again: what is executed is made anew, of the same template and parameters.
    """
    others = pending(stage)
    try:
        sam_deploy(stage, region, values, "--no-execute-changeset")
        answer = input("Migrate the databases, then deploy this change set? [y/N]: ")
    finally:
        discard(pending(stage) - others)
    if answer.strip().lower() not in ("y", "yes"):
        raise Refused("Nothing was changed: the change set was not executed.")


def sam(stage: str, region: str, values: dict[str, str], confirm: str) -> None:
    """`sam deploy`, which may show what it will change and ask. It succeeds also where the answer is no."""
    others = pending(stage)
    sam_deploy(stage, region, values, confirm)
    if refused := pending(stage) - others:
        discard(refused)
        raise Refused("Nothing was changed: the change set was not executed.")


def sam_deploy(stage: str, region: str, values: dict[str, str], option: str) -> None:
    """The command, which is the same for looking and for doing."""
    with overrides(values) as parameters:
        run([
            TOOLS / "sam" / "bin" / "sam", "deploy", "--template-file", ROOT / "template.yaml",
            "--stack-name", stack_name(stage), "--region", region, "--resolve-s3", option,
            "--no-fail-on-empty-changeset", "--capabilities", "CAPABILITY_IAM", "CAPABILITY_NAMED_IAM",
            "CAPABILITY_AUTO_EXPAND", "--parameter-overrides", parameters,
        ])  # fmt: skip


def discard(change_sets: set[str]) -> None:
    """Delete change sets that nobody will execute."""
    for change_set in change_sets:
        boto3.client("cloudformation").delete_change_set(ChangeSetName=change_set)


def pending(stage: str) -> set[str]:
    """The stack's change sets that wait for somebody; there are none once one of them was executed."""
    pages = boto3.client("cloudformation").get_paginator("list_change_sets").paginate(StackName=stack_name(stage))
    try:
        found = [change_set for page in pages for change_set in page["Summaries"]]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return set()
        raise Refused(f"CloudFormation does not list the change sets: {error}.") from error
    return {change_set["ChangeSetId"] for change_set in found if change_set["ExecutionStatus"] == "AVAILABLE"}


def migrate_first(stage: str, region: str, architecture: str) -> str:
    """Run the new build of `workers-migrate`, put alone into the stack, with the settings and permissions of before.

    Nobody else invokes it, so for its users the stack is as it was; `sam deploy` gives it the same code once more.
    """
    client = boto3.client("lambda", region_name=region)
    name = migrator(stage)
    code = ROOT / yaml_parse(TEMPLATE.read_text())["Resources"]["WorkersMigrate"]["Properties"]["CodeUri"]
    client.get_waiter("function_updated_v2").wait(FunctionName=name)
    client.update_function_code(FunctionName=name, ZipFile=code.read_bytes(), Architectures=[architecture])
    client.get_waiter("function_updated_v2").wait(FunctionName=name)
    return migrate(
        stage,
        region,
        "The functions are as they were and go on. Should it complain of a variable or a permission that this very "
        "deploy brings, `MIGRATE_LAST=1 make deploy` migrates when the functions are new.",
    )


def migrate(stage: str, region: str, functions: str) -> str:
    """Run the migration function; `functions` says what has become of the others when it fails."""
    config = botocore.config.Config(read_timeout=660, retries={"total_max_attempts": 1}, tcp_keepalive=True)
    client = boto3.client("lambda", region_name=region, config=config)
    keep_alive(client)
    reply = invoked(client, migrator(stage))
    text = reply["Payload"].read().decode()
    if reply.get("FunctionError"):
        if any(words in text for words in NEWER):
            return "This code is older than the schema, which stays."
        unknown = f"The log group /{stack_name(stage)}/workers tells how far it came."
        meaning = next((meaning for words, meaning in BEHIND.items() if words in text), unknown)
        raise Refused(
            f"The migration failed: {text}\n{meaning} {functions} Mend what it complains of and deploy again, which "
            "goes on from there; docs/operations.md has a section on migrations."
        )
    return text


def migrator(stage: str) -> str:
    """The migration function's name."""
    return f"{stack_name(stage)}-workers-migrate"


def invoked(client: Any, name: str, pause: float = 5) -> Any:
    """The reply of a function, once it can be invoked: the first call wakes one that Lambda has put aside."""
    deadline = time.monotonic() + READY_WITHIN
    while True:
        try:
            return client.invoke(FunctionName=name, Payload=b"{}")
        except botocore.exceptions.ClientError as error:
            code = error.response["Error"]["Code"]
            waking = code in ("ResourceNotReadyException", "ResourceConflictException", "ENINotReadyException")
            if not waking or time.monotonic() > deadline:
                raise
            time.sleep(pause)


def keep_alive(client: Any) -> None:
    """Have the system ask after a silent connection each minute.

    NATs forget one after 350 seconds, and a migration may take 600. Of its own the system asks after two hours, and
    botocore has no setting for that.
    """
    idle = socket.TCP_KEEPALIVE if sys.platform == "darwin" else socket.TCP_KEEPIDLE
    client._endpoint.http_session._socket_options.append((socket.IPPROTO_TCP, idle, 60))


def addresses(stage: str, region: str) -> tuple[str, str]:
    """Where the API is, and where it can be seen now: a DNS record that is made elsewhere may not be there yet."""
    stack = boto3.client("cloudformation", region_name=region).describe_stacks(StackName=stack_name(stage))["Stacks"][0]
    parameters = {item["ParameterKey"]: item.get("ParameterValue", "") for item in stack["Parameters"]}
    outputs = {item["OutputKey"]: item["OutputValue"] for item in stack["Outputs"]}
    domain, gateway = parameters.get("DomainName"), outputs["ApiUrl"]
    if not domain:
        return gateway, gateway
    address = f"https://{domain}"
    if parameters.get("HostedZoneId"):
        return address, address
    print(f"The DNS record of {domain} is made elsewhere; it has to lead to {outputs['DomainTarget']}.")
    return address, gateway


def smoke(address: str, seconds: float = 60) -> None:
    """Health has to be good within a minute: a new name or a new network takes a moment."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=10) as reply:
                print(f"Health: {reply.read().decode()}")
                return
        except (urllib.error.URLError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise Refused(f"{address}/health is not good: {error}.") from error
            time.sleep(2)


def run(command: list[Any], environment: dict[str, str] | None = None) -> None:
    """Run a program of ours to its end."""
    if subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, check=False).returncode:
        raise Refused(f"{Path(str(command[0])).name} {command[1]} failed; its messages are above.")


def main(arguments: list[str]) -> int:
    """Run one command; a refusal is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("deploy", "destroy"):
        commands.add_parser(name).add_argument("stage", choices=STAGES)
    moving = commands.add_parser("redrive")
    moving.add_argument("queue", choices=QUEUES)
    moving.add_argument("stage", choices=STAGES, nargs="?")
    given = parser.parse_args(arguments)
    try:
        if given.command == "redrive":
            redrive(given.queue, given.stage)
        else:
            {"deploy": deploy, "destroy": destroy}[given.command](given.stage)
        return 0
    except (Refused, OSError) as failure:
        print(f"\n{failure}", file=sys.stderr)
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        print(f"\nAWS does not do it: {error}.", file=sys.stderr)
    except EOFError:
        print("\nAn answer is missing, and there is nobody to ask.", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
