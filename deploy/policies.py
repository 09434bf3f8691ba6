"""What cfn-lint does not look at: permissions, tracing, logs, encryption and CloudFormation's limits.

python deploy/policies.py dev prod: the template is transformed with the parameters of each stage, and the result
is checked by cfn-lint and by the rules below. Runs in the environment of `localstack/requirements-sam.txt`.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent / "template.yaml"

# CloudFormation's own: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
MAX_RESOURCES = 500
MAX_BYTES = 1_000_000
# AWS's policies that SAM adds to the role of every function: logs, traces, network interfaces.
MANAGED_BY_AWS = (
    "AWSLambdaBasicExecutionRole",
    "AWSXRayDaemonWriteAccess",
    "AWSXrayWriteOnlyAccess",
    "AWSLambdaVPCAccessExecutionRole",
    "AWSCodeDeployRoleForLambda",
)
# As the Lambda developer guide has it for queues: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
HIDDEN_FOR = 6
# Tells the consumer which delivery is a message's last.
MAX_RECEIVE_COUNT = "EVENTS_MAX_RECEIVE_COUNT"
# An identity may have a default configuration set, which sending then needs as well and which nobody is asked for.
NEEDED_OPEN = ("ses:SendEmail", ":configuration-set/*")
NOTHING = {"Ref": "AWS::NoValue"}
# Every item says in this attribute when it is of no more use.
EXPIRING = {"AttributeName": "expires", "Enabled": True}
# This one reads every queue, so the role must deny itself all but its own.
EVERY_QUEUE = "AWSLambdaSQSQueueExecutionRole"


def parameters(stage: str) -> dict[str, str]:
    """The values that a stage is deployed with, without its secrets."""
    return json.loads((HERE / f"{stage}.json").read_text())


def transformed(values: dict[str, str], text: str | None = None) -> dict[str, Any]:
    """The template as CloudFormation gets it, with these values as the parameters' defaults."""
    source = yaml_parse(text or TEMPLATE.read_text())
    for name, value in values.items():
        parameter = source["Parameters"][name]
        parameter["Default"] = int(value) if parameter["Type"] == "Number" else value
    # SAM wants these to be places in S3, as `sam deploy` makes them.
    for resource in source["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = {"Bucket": "code", "Key": "bootstrap.zip"}
    # Aliases of YAML are one object here, and the transform changes objects.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    return transform(json.loads(json.dumps(source)), copy.deepcopy(values), ManagedPolicyLoader(None))


def faults(template: dict[str, Any]) -> list[str]:
    """Everything that breaks a rule, one sentence each."""
    resources = template["Resources"]
    found = []
    if len(resources) > MAX_RESOURCES:
        found.append(f"The stack has {len(resources)} resources; CloudFormation takes {MAX_RESOURCES}.")
    if (size := len(json.dumps(template))) > MAX_BYTES:
        found.append(f"The transformed template has {size} bytes; CloudFormation takes {MAX_BYTES}.")
    for name, statement in _statements(resources):
        found += [f"{name}: {fault}" for fault in _statement_faults(statement)]
    for name, resource in resources.items():
        found += [f"{name}: {fault}" for fault in _resource_faults(resource)]
    found += _database_readers(resources)
    return [*found, *_provisioned_too_early(resources), *_queue_faults(resources)]


def _statements(resources: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement that grants something to a role."""
    for name, resource in resources.items():
        properties = resource.get("Properties", {})
        documents = [policy["PolicyDocument"] for policy in _list(properties.get("Policies", []))]
        if resource["Type"] in ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy"):
            documents.append(properties["PolicyDocument"])
        for document in documents:
            for statement in _list(document["Statement"]):
                # What a condition may leave out is looked at as if it were there.
                branches = statement["Fn::If"][1:] if "Fn::If" in statement else [statement]
                yield from ((name, branch) for branch in branches if branch != NOTHING)


def _statement_faults(statement: dict[str, Any]) -> Iterator[str]:
    if statement["Effect"] != "Allow":
        return
    if "NotAction" in statement or "NotResource" in statement:
        yield "grants everything but something"
    for action in _list(statement.get("Action", [])):
        if "*" in action:
            yield f"grants the actions {action}"
    for resource in _list(statement.get("Resource", "*")):
        text = resource if isinstance(resource, str) else json.dumps(resource)
        if statement.get("Action") == NEEDED_OPEN[0] and text.rstrip('"}').endswith(NEEDED_OPEN[1]):
            continue
        if text == "*" or re.search(r":\*|/\*|\*\"|^\*", text):
            yield f"grants {statement.get('Action')} on {text}"


def _denies_other_queues(statement: dict[str, Any]) -> bool:
    reads = {"sqs:ReceiveMessage", "sqs:DeleteMessage"}
    return statement["Effect"] == "Deny" and "NotResource" in statement and reads <= set(_list(statement["Action"]))


def _resource_faults(resource: dict[str, Any]) -> Iterator[str]:
    kind, properties = resource["Type"], resource.get("Properties", {})
    if kind == "AWS::IAM::Role":
        for arn in _list(properties.get("ManagedPolicyArns", [])):
            text = arn if isinstance(arn, str) else arn.get("Fn::Sub", arn.get("Ref", ""))
            policy = str(text).rsplit("/", 1)[-1]
            if policy == EVERY_QUEUE:
                if not any(_denies_other_queues(statement) for _, statement in _statements({"": resource})):
                    yield "reads every queue"
            elif ":aws:policy/" in str(text) and policy not in MANAGED_BY_AWS:
                yield f"has AWS's policy {text}"
    if kind == "AWS::Lambda::Function":
        if properties.get("TracingConfig", {}).get("Mode") != "Active":
            yield "is not traced"
        if "LogGroup" not in properties.get("LoggingConfig", {}):
            yield "writes to a log group without retention"
    if kind == "AWS::Logs::LogGroup" and "RetentionInDays" not in properties:
        yield "keeps logs for ever"
    if kind == "AWS::DynamoDB::Table" and properties.get("TimeToLiveSpecification") != EXPIRING:
        yield "keeps what has expired"
    if kind == "AWS::RDS::DBCluster" and properties.get("EnableCloudwatchLogsExports"):
        yield "writes to a log group that RDS makes and keeps for ever"
    if kind == "AWS::SQS::Queue":
        if not properties.get("SqsManagedSseEnabled"):
            yield "is not encrypted"
        if "RedrivePolicy" not in properties and "RedriveAllowPolicy" not in properties:
            yield "has neither a dead-letter queue nor queues of which it is one"
    if kind == "AWS::Lambda::EventSourceMapping" and "MaximumConcurrency" not in properties.get("ScalingConfig", {}):
        yield "has no bound on the concurrency of its consumer"
    if kind == "AWS::CloudWatch::Alarm" and not properties.get("AlarmActions"):
        yield "tells nobody"
    if kind == "AWS::Scheduler::Schedule" and "Name" in properties:
        yield "has a name that another stack of the account has as well"
    if kind == "AWS::ApiGateway::Deployment" and "StageName" in properties:
        yield f"opens a stage that nothing guards, {properties['StageName']}"


def _database_readers(resources: dict[str, Any]) -> list[str]:
    """The credentials may be in a secret of RDS, which every function of the database must be able to read."""
    readers = {
        resource["Properties"]["Role"]["Fn::GetAtt"][0]
        for resource in resources.values()
        if resource["Type"] == "AWS::Lambda::Function"
        and "DATABASE_SECRET_ARN" in resource["Properties"].get("Environment", {}).get("Variables", {})
    }
    policy = resources.get("DatabaseSecretPolicy", {"Properties": {"Roles": []}})
    allowed = {role["Ref"] for role in policy["Properties"]["Roles"]}
    return [f"DatabaseSecretPolicy: {role} is missing" for role in sorted(readers - allowed)] + [
        f"DatabaseSecretPolicy: {role} does not read the database" for role in sorted(allowed - readers)
    ]


def _provisioned_too_early(resources: dict[str, Any]) -> Iterator[str]:
    """Sandboxes that are provisioned with an alias start at once, and need the database's credentials by then."""
    for resource in resources.values():
        if resource["Type"] == "AWS::Lambda::Alias" and "ProvisionedConcurrencyConfig" in resource["Properties"]:
            function = resource["Properties"]["FunctionName"]["Ref"]
            if "DatabaseSecretPolicy" not in _list(resources[function].get("DependsOn", [])):
                yield f"{function}: is provisioned before it may read the database's credentials"


def _queue_faults(resources: dict[str, Any]) -> Iterator[str]:
    """What a queue and its consumer have to agree on."""
    for mapping in resources.values():
        if mapping["Type"] != "AWS::Lambda::EventSourceMapping":
            continue
        queue = mapping["Properties"]["EventSourceArn"]["Fn::GetAtt"][0]
        function = mapping["Properties"]["FunctionName"]["Ref"]
        source, consumer = resources[queue]["Properties"], resources[function]["Properties"]
        if source["VisibilityTimeout"] < HIDDEN_FOR * consumer["Timeout"]:
            yield f"{queue}: shows a message again before {HIDDEN_FOR} time-outs of {function} have passed"
        told = consumer.get("Environment", {}).get("Variables", {}).get(MAX_RECEIVE_COUNT)
        if told is not None and told != str(source["RedrivePolicy"]["maxReceiveCount"]):
            yield f"{function}: {MAX_RECEIVE_COUNT} is not the maxReceiveCount of {queue}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def main(stages: list[str]) -> int:
    """Check every stage; the exit code says whether all are clean."""
    logging.disable(logging.WARNING)  # SAM's, on features of its own
    code = 0
    for stage in stages:
        template = transformed(parameters(stage))
        problems = faults(template)
        for problem in problems:
            print(f"{stage}: {problem}")
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(template, file)
            file.flush()
            # W2001: what SAM has used up is a parameter without a use.
            command = [Path(sys.executable).parent / "cfn-lint", "--ignore-checks", "W1030", "W2001", "--", file.name]
            lint = subprocess.run(command, check=False).returncode
        size = len(json.dumps(template))
        print(f"{stage}: {len(template['Resources'])} resources, {size} bytes, {len(problems)} faults.", flush=True)
        code |= bool(problems) or bool(lint)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
