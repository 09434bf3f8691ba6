"""What of a deploy can be tested without an AWS account. The guide has an environment of its own."""

import json
import re
import subprocess
import zipfile

import pytest

import cloudformation
import deploy
from settings import DEPLOY, ROOT, SAM_VENV


def guide(script: str) -> subprocess.CompletedProcess:
    """A few lines beside the guide."""
    lines = "import sys, json\nsys.path.insert(0, sys.argv[1])\nimport guide\n" + script
    command = [str(SAM_VENV / "bin" / "python"), "-c", lines, str(DEPLOY)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def command(*arguments: str, typed: str = "") -> subprocess.CompletedProcess:
    """The guide as `make` runs it, where there are no credentials and no network to find some."""
    environment = {"PATH": "/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    return subprocess.run(
        [str(SAM_VENV / "bin" / "python"), str(DEPLOY / "guide.py"), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, input=typed, env=environment,
    )  # fmt: skip


def test_production_is_not_destroyed_unless_its_name_is_typed():
    script = """
import builtins
guide.identity = lambda: ("1", "eu-central-1")
guide.protect_database = guide.run = lambda *_: print("gone on")
guide.described = lambda _: None
def typed(text):
    if text is None:
        raise EOFError
    return text
for text in (None, "yes", "prod", "ai-chat-dev", "ai-chat-prod"):
    builtins.input = lambda _, text=text: typed(text)
    print(guide.main(["destroy", "prod"]))
"""
    done = guide(script)
    assert done.stdout.split("\n")[:-1] == ["1", "1", "1", "1", "gone on", "gone on", "0"], done.stderr
    assert done.stderr.count("Nothing was deleted") == 4


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_whose_account_it_is_is_looked_at_before_anything_is_asked(stage):
    done = command("destroy", stage, typed="ai-chat-prod\n")
    assert done.returncode == 1
    assert "There is no region" in done.stderr and "Type" not in done.stdout


def test_a_deploy_without_region_or_stage_says_so():
    assert "There is no region" in command("deploy", "prod").stderr
    assert command("deploy", "local").returncode == 2
    assert command("deploy").returncode == 2


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("guide.Refused('No.')", "No."),
        ("EOFError()", "there is nobody to ask"),
        ("OSError(28, 'No space left on device')", "No space left on device"),
        ("guide.botocore.exceptions.EndpointConnectionError(endpoint_url='https://a')", "Could not connect"),
        ("guide.botocore.exceptions.ClientError({'Error': {'Code': 'AccessDenied'}}, 'Invoke')", "AccessDenied"),
    ],
)
def test_what_ends_a_command_is_a_sentence(fault, sentence):
    script = f"""
def fail(_):
    raise {fault}
guide.deploy = fail
sys.exit(guide.main(["deploy", "dev"]))
"""
    done = guide(script)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"Stage": "local"}, "emulator"),
        ({"Stage": "staging"}, "Stage is one of"),
        ({"Nonsense": "1"}, "no parameter Nonsense"),
        ({"MailFrom": "nobody"}, "MailFrom does not match"),
        ({"MailFrom": "no-reply@example.com"}, "verified in SES"),
        ({"AppUrl": "http://app.example.com"}, "https"),
        ({"DomainName": "api.example.com"}, "go together"),
        ({"DatabaseUrl": 'postgres://a:"@b/c'}, "DatabaseUrl does not match"),
        ({"AdminEmails": 'one@a.net"'}, "quotation mark"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_done(values, complaint):
    done = guide(f"try:\n    guide.check({values!r})\nexcept guide.Refused as refusal:\n    print(refusal)")
    assert complaint in done.stdout, done.stderr


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_the_parameters_of_a_stage_are_known_to_the_template(stage):
    done = guide(f"guide.check(json.loads((guide.HERE / '{stage}.json').read_text()))\nprint('good')")
    assert done.stdout == "good\n", done.stderr
    assert json.loads((DEPLOY / f"{stage}.json").read_text())["Stage"] == stage


def test_every_question_is_about_a_parameter_and_every_secret_stays_hidden():
    script = """
declared = guide.declared()
assert set(guide.QUESTIONS) | set(guide.SECRETS) <= set(declared)
assert all(declared[name].get("NoEcho") for name in guide.SECRETS)
assert not any(declared[name].get("NoEcho") for name in guide.QUESTIONS)
plain, secret = guide.questions({"AppUrl": "https://app.example.com"})
assert "AppUrl" not in plain and "DatabaseUrl" in secret
assert "DatabaseUrl" not in guide.questions({"CreateDatabase": "true"})[1]
assert {"StripeSecretKey", "StripeWebhookSecret"} <= set(secret)
print("good")
"""
    done = guide(script)
    assert done.stdout == "good\n", done.stderr


def test_sam_reads_every_value_as_it_was_given():
    values = {
        "A": "",
        "B": "one two  three",
        "C": "it's Y=3,Z=4",
        "D": "arn:aws:x:1",
        "E": " ends with a space ",
        "F": "é",
    }
    script = f"""
from pathlib import Path
from samcli.cli.types import CfnParameterOverridesType
values = {values!r}
def read(given):
    return CfnParameterOverridesType().convert(tuple(given), None, None)
assert read({deploy.overrides(values)!r}) == values
with guide.overrides(values) as given:
    file = Path(given.removeprefix("file://"))
    assert read([given]) == values and file.stat().st_mode & 0o077 == 0
assert not file.exists()
guide.check({{"AdminEmails": "one@a.net, two@a.net"}})
print("good")
"""
    done = guide(script)
    assert done.stdout == "good\n", done.stderr


# CloudFormation as far as the guide talks to it; `stack` and `waiting` are what it knows.
FORMATION = """
import botocore.exceptions
class Formation:
    stack, waiting, deleted, resources = None, [], [], {}
    def fail(self):
        raise botocore.exceptions.ClientError({"Error": {"Code": "ValidationError",
            "Message": "Stack with id ai-chat-dev does not exist"}}, "DescribeStacks")
    def describe_stacks(self, StackName):
        return {"Stacks": [self.stack]} if self.stack else self.fail()
    def describe_stack_resource(self, StackName, LogicalResourceId):
        name = self.resources.get(LogicalResourceId)
        detail = {"ResourceStatus": "CREATE_COMPLETE", "PhysicalResourceId": name}
        return {"StackResourceDetail": detail} if name else self.fail()
    def get_paginator(self, _):
        return self
    def paginate(self, StackName):
        sets = [{"ChangeSetId": name, "ExecutionStatus": "AVAILABLE"} for name in self.waiting]
        yield {"Summaries": [*sets, {"ChangeSetId": "empty", "ExecutionStatus": "UNAVAILABLE"}]}
    def delete_change_set(self, ChangeSetName):
        self.deleted.append(ChangeSetName)
formation = Formation()
guide.boto3.client = lambda *_, **__: formation
"""


def test_a_stack_remembers_what_is_no_secret_and_a_refused_one_nothing():
    script = (
        FORMATION
        + """
found = [guide.deployed("dev")]
formation.stack = {"StackStatus": "REVIEW_IN_PROGRESS"}
found.append(guide.deployed("dev"))
given = {"AppUrl": "https://app.example.net", "ClickHousePassword": "****", "Release": "0a", "Forgotten": "1"}
formation.stack = {"StackStatus": "UPDATE_ROLLBACK_COMPLETE", "Parameters": [
    {"ParameterKey": name, "ParameterValue": value} for name, value in given.items()]}
found.append(guide.deployed("dev"))
print(json.dumps(found))
"""
    )
    done = guide(script)
    assert json.loads(done.stdout) == [None, None, {"AppUrl": "https://app.example.net"}], done.stderr


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        ("ROLLBACK_COMPLETE", "make destroy STAGE=dev"),
        ("ROLLBACK_FAILED", "make destroy STAGE=dev"),
        ("CREATE_FAILED", "make destroy STAGE=dev"),
        ("DELETE_FAILED", "make destroy STAGE=dev"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback --stack-name ai-chat-dev"),
        ("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "when it has ended"),
    ],
)
def test_a_stack_that_no_deploy_mends_says_what_does(status, way_out):
    refused = f"""
formation.stack = {{"StackStatus": {status!r}}}
try:
    guide.deployed("dev")
except guide.Refused as refusal:
    print(refusal)
"""
    done = guide(FORMATION + refused)
    assert way_out in done.stdout, done.stderr


def test_what_is_destroyed_loses_its_protection_and_what_stays_keeps_it():
    script = (
        FORMATION
        + """
calls = []
class Databases:
    def modify_db_cluster(self, DBClusterIdentifier, DeletionProtection):
        calls.append([DBClusterIdentifier, DeletionProtection])
guide.boto3.client = lambda service, **_: Databases() if service == "rds" else formation
guide.identity = lambda: ("1", "eu-central-1")
guide.confirm_destruction = lambda *_: None
def ends(stack):
    def run(command):
        calls.append(command[1])
        formation.stack = stack
    guide.run = run
for stack in (None, {"StackStatus": "CREATE_COMPLETE"}, {"StackStatus": "DELETE_FAILED"}):
    formation.stack, formation.resources = {"StackStatus": "CREATE_COMPLETE"}, {"DatabaseCluster": "aurora"}
    ends(stack)
    guide.destroy("prod")
formation.resources = {}
guide.destroy("dev")
print(json.dumps(calls))
"""
    )
    done = guide(script)
    taken_off = ["aurora", False]
    assert json.loads(done.stdout) == [
        taken_off, "delete", taken_off, "delete", ["aurora", True], taken_off, "delete", "delete",
    ], done.stderr  # fmt: skip


def test_concurrency_that_the_account_has_not_is_refused_before_anything_is_made():
    script = """
class Functions:
    def get_account_settings(self):
        return {"AccountLimit": {"ConcurrentExecutions": free, "UnreservedConcurrentExecutions": free}}
guide.boto3.client = lambda _: Functions()
for free, wanted, has in ((10, "2", "0"), (101, "2", "1"), (102, "2", "0"), (10, "0", "2"), (100, "2", "2")):
    try:
        guide.check_concurrency({"ProvisionedConcurrency": wanted}, {"ProvisionedConcurrency": has})
        print("good")
    except guide.Refused as refusal:
        print("102" in str(refusal))
guide.check_concurrency({}, {})
"""
    done = guide(script)
    assert done.stdout.split() == ["True", "True", "good", "good", "good"], done.stderr


def test_what_is_kept_for_streams_is_left_of_the_quota_and_bounds_what_is_provisioned():
    script = """
class Functions:
    def get_account_settings(self):
        return {"AccountLimit": {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": free}}
guide.boto3.client = lambda _: Functions()
def kept(send="", regenerate="", resume="", provisioned="0"):
    return {"ChatSendConcurrency": send, "ChatRegenerateConcurrency": regenerate, "ChatResumeConcurrency": resume,
            "ProvisionedConcurrency": provisioned}
for free, values, before in (
    (1000, kept("500", "50", "100", "2"), {}), (849, kept("500", "50", "100"), {}), (10, kept("0", "0", "0"), {}),
    (150, kept("550"), kept("500")), (149, kept("550"), kept("500")), (10, kept("500"), kept("550")),
    (1000, kept("2", provisioned="3"), {}),
):
    try:
        guide.check(values)
        guide.check_concurrency(values, before)
        print("good")
    except guide.Refused as refusal:
        print(str(refusal).split(". ")[0])
"""
    done = guide(script)
    leaves = (
        "The account's quota leaves {} concurrent executions in this region; what is to be provisioned and reserved "
    )
    assert done.stdout.splitlines() == [
        "good", leaves.format(849) + "needs 850", "good", "good", leaves.format(149) + "needs 150", "good",
        "ChatSendConcurrency=2 is a bound on ProvisionedConcurrency=3 as well: write a smaller "
        "ProvisionedConcurrency into the stage's file, 0 for none.",
    ], done.stderr  # fmt: skip


def test_every_function_that_streams_may_be_bounded():
    bounded = {
        name: properties["ReservedConcurrentExecutions"]["If"]
        for name, properties in cloudformation.functions(cloudformation.template()).items()
        if "ReservedConcurrentExecutions" in properties
    }
    streaming = {
        name for name, properties in cloudformation.functions(cloudformation.template()).items()
        for event in properties.get("Events", {}).values() if "ResponseTransferMode" in event["Properties"]
    }  # fmt: skip
    assert set(bounded) == streaming
    parameters = [given[1]["Ref"] for given in bounded.values()]
    for condition, value, otherwise in bounded.values():
        assert (condition, otherwise) == (f"{value['Ref']}Given", {"Ref": "AWS::NoValue"})
    done = guide(
        f"assert guide.RESERVED == {dict((name, parameters.count(name)) for name in parameters)}\nprint('good')"
    )
    assert done.stdout == "good\n", done.stderr


def test_a_version_of_aurora_that_rds_does_not_make_is_refused_before_the_build():
    script = """
asked = []
class Databases:
    def get_paginator(self, operation):
        asked.append(operation)
        return self
    def paginate(self, Engine):
        assert Engine == "aurora-postgresql"
        for versions in (["16.11", "17.9"], ["17.10", "18.3"]):
            yield {"DBEngineVersions": [{"EngineVersion": version} for version in versions]}
guide.boto3.client = lambda _: Databases()
own = {"CreateDatabase": "true"}
default = guide.declared()["DatabaseEngineVersion"]["Default"]
for values, before in (
    ({}, {}), (own, own), (own, own | {"DatabaseEngineVersion": default}),
    (own | {"DatabaseEngineVersion": "17.10"}, own), (own, {}), (own | {"DatabaseEngineVersion": "15.2"}, own),
):
    try:
        guide.check_engine(values, before)
        print("good", len(asked))
    except guide.Refused as refusal:
        print(refusal)
"""
    done = guide(script)
    assert done.stdout.splitlines() == [
        "good 0", "good 0", "good 0", "good 1",
        "RDS does not make Aurora PostgreSQL 17.7 here: write another DatabaseEngineVersion into the stage's file, of "
        "17.9, 17.10.",
        "RDS does not make Aurora PostgreSQL 15.2 here: write another DatabaseEngineVersion into the stage's file, of "
        "16.11, 17.9, 17.10, 18.3.",
    ], done.stderr  # fmt: skip


def test_a_stages_file_may_say_numbers_and_no_nonsense():
    script = """
import pathlib, tempfile
guide.HERE = pathlib.Path(tempfile.mkdtemp())
def said(text):
    (guide.HERE / "dev.json").write_text(text)
    try:
        values = guide.of_file("dev")
        guide.check(values)
        return values
    except guide.Refused as refusal:
        return str(refusal).split(":")[0]
print(json.dumps([said(text) for text in (
    '{"ProvisionedConcurrency": 0, "GradualDeployment": true}', '{"ProvisionedConcurrency": "two"}', '{"Stage": ',
)]))
"""
    done = guide(script)
    assert json.loads(done.stdout) == [
        {"ProvisionedConcurrency": "0", "GradualDeployment": "true"},
        "ProvisionedConcurrency is a number, not two.",
        "deploy/dev.json is no JSON",
    ], done.stderr  # fmt: skip


def test_what_was_rolled_back_is_tried_again_as_another_release():
    script = (
        FORMATION
        + """
print(guide.rolled_back("dev"))
for status in ("UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"):
    formation.stack = {"StackStatus": status}
    print(guide.rolled_back("dev"))
"""
    )
    done = guide(script)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def test_only_what_nobody_knows_is_asked_and_the_file_wins_over_the_stack():
    script = """
import builtins
asked, sent = [], {}
guide.identity = lambda: ("1", "eu-central-1")
guide.build = guide.smoke = lambda _: None
guide.migrate = lambda *_: ""
guide.migrates_first = lambda *_: False
guide.addresses = lambda *_: ("", "")
guide.release = lambda values, anew: "new" if anew else "old"
guide.rolled_back = lambda _: False
guide.check_concurrency = guide.check_engine = lambda *_: None
guide.alarmed = lambda _: False
guide.unheard = lambda _: []
guide.sam = lambda stage, region, values, confirm: sent.update(values)
answers = {"Ori": "https://app.example.net", "Sen": "no-reply@example.net", "Bas": "https://clickhouse.example.net"}
def answer(text):
    asked.append(text)
    return answers.get(text[:3], "")
builtins.input = answer
guide.getpass.getpass = lambda text: asked.append(text) or ("sk_live_1" if "key of Stripe" in text else "")

guide.deployed = lambda _: None
guide.deploy("prod")
assert len(asked) == len(guide.QUESTIONS) + len(guide.SECRETS) - len(guide.OF_A_DOMAIN), asked
assert sent["GradualDeployment"] == "true"
assert sent["StripeSecretKey"] == "sk_live_1" and "StripeWebhookSecret" not in sent and sent["Release"] == "old"

remembered = {name: value for name, value in sent.items() if name in guide.visible(guide.declared())}
remembered |= {"CertificateArn": "", "HostedZoneId": "", "WafRequestsPerMinute": "500", "LogRetentionDays": "1"}
guide.deployed = lambda _: remembered
asked.clear(), sent.clear()
guide.deploy("prod")
assert asked == [] and "StripeSecretKey" not in sent
assert (sent["AppUrl"], sent["WafRequestsPerMinute"]) == ("https://app.example.net", "500")
assert sent["LogRetentionDays"] == json.loads((guide.HERE / "prod.json").read_text())["LogRetentionDays"]

guide.rolled_back = lambda _: True
guide.deploy("prod")
assert asked == [] and sent["Release"] == "new"
guide.rolled_back = lambda _: False

guide.alarmed = lambda _: True
guide.deploy("prod")
assert sent["GradualDeployment"] == "false"
remembered["GradualDeployment"] = "false"
guide.alarmed = lambda _: False
guide.deploy("prod")
assert sent["GradualDeployment"] == "true"
guide.deploy("dev")
assert sent["GradualDeployment"] == "false"

guide.os.environ["ASK_SECRETS"] = "1"
guide.deploy("prod")
assert len(asked) == len(guide.SECRETS) and sent["Release"] == "new"
print("good", file=sys.stderr)

print("\\na name of its own:")
remembered |= {"DomainName": "api.example.net", "CertificateArn": "arn"}
guide.deploy("prod")
"""
    done = guide(script)
    assert done.stderr == "good\n", done.stderr
    without, named = done.stdout.split("a name of its own:")
    assert without.count("at once") == 1
    assert "need bearer tokens" in without and "need bearer tokens" not in named


def test_the_alarm_of_a_gradual_deploy_is_looked_up_by_its_name_in_the_account():
    source = cloudformation.template()["Resources"]
    alarms = {
        alarm["Ref"] for item in source.values()
        for alarm in item.get("Properties", {}).get("DeploymentPreference", {}).get("Alarms", [])
    }  # fmt: skip
    assert alarms == {"ServerErrorsAlarm"}
    script = (
        FORMATION
        + """
class Watch:
    def describe_alarms(self, AlarmNames):
        assert AlarmNames == ["errors-1"]
        return {"MetricAlarms": [{"StateValue": state}]}
guide.boto3.client = lambda service, **_: Watch() if service == "cloudwatch" else formation
print(guide.alarmed("dev"))
formation.resources = {"ServerErrorsAlarm": "errors-1"}
for state in ("OK", "INSUFFICIENT_DATA", "ALARM"):
    print(guide.alarmed("dev"))
"""
    )
    done = guide(script)
    assert done.stdout.split() == ["False", "False", "False", "True"], done.stderr


def test_a_deploy_says_who_is_not_told_of_alarms():
    script = (
        FORMATION
        + """
class Topics:
    def get_paginator(self, operation):
        assert operation == "list_subscriptions_by_topic"
        return self
    def paginate(self, TopicArn):
        assert TopicArn == "arn:aws:sns:eu-central-1:1:alarms"
        for arns in pages:
            yield {"Subscriptions": [{"SubscriptionArn": arn, "Endpoint": "ada@example.net"} for arn in arns]}
guide.boto3.client = lambda service, **_: Topics() if service == "sns" else formation
confirmed, pages = "arn:aws:sns:eu-central-1:1:alarms:2", []
print(len(guide.unheard("dev")))
formation.resources = {"AlarmTopic": "arn:aws:sns:eu-central-1:1:alarms"}
for pages in ([[confirmed]], [["PendingConfirmation"], [confirmed]], [["PendingConfirmation"]], [["Deleted"]], [[]]):
    print(*guide.unheard("dev"))
"""
    )
    done = guide(script)
    none, told, one, waiting, deleted, empty = done.stdout.split("\n")[:-1]
    assert (none, told) == ("0", ""), done.stderr
    assert one == waiting and one.startswith("ada@example.net is told of no alarm") and "Nobody" not in one
    assert deleted == empty and deleted.startswith("Nobody is told of alarms")
    assert "aws sns subscribe --topic-arn arn:aws:sns:eu-central-1:1:alarms --protocol email" in deleted


def test_nothing_follows_a_change_set_that_was_not_executed():
    script = (
        FORMATION
        + """
formation.waiting = ["somebody else's"]
guide.run = lambda command: formation.waiting.append("ours")
try:
    guide.sam("dev", "eu-central-1", {}, "--confirm-changeset")
except guide.Refused as refusal:
    print(refusal, formation.deleted)
formation.waiting = ["somebody else's"]
guide.run = lambda command: formation.waiting.clear()
guide.sam("dev", "eu-central-1", {}, "--confirm-changeset")
print("executed")
guide.run = lambda command: None
guide.sam("dev", "eu-central-1", {}, "--confirm-changeset")
print("nothing to do")
"""
    )
    done = guide(script)
    refused = "Nothing was changed: the change set was not executed. ['ours']"
    assert done.stdout.splitlines() == [refused, "executed", "nothing to do"], done.stderr


def test_a_failed_migration_says_which_store_is_behind_and_a_silent_one_is_not_forgotten_on_the_way():
    script = """
import http.server, os, socket, threading
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
replies = [
    ("Unhandled", '{"errorMessage": "internal at a:1: the schema of Postgres is not up to date: internal at b:2"}'),
    ("Unhandled", '{"errorMessage": "internal at a:1: the schema of ClickHouse is not up to date: internal at b:2"}'),
    ("Unhandled", '{"errorMessage": "Task timed out after 600.00 seconds"}'),
    ("Unhandled", '{"errorMessage": "internal at a:1: the schema of Postgres is not up to date: internal at b:2: '
                  'migration 310 was previously applied but is missing in the resolved migrations"}'),
    ("Unhandled", '{"errorMessage": "internal at a:1: the schema of ClickHouse is not up to date: internal at b:2: '
                  'ClickHouse has migration 4, which this code is older than: its figures may be wrong"}'),
    (None, '{"postgres": [10]}'),
]
class Lambda(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        error, text = replies.pop(0)
        self.send_response(200)
        if error:
            self.send_header("x-amz-function-error", error)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lambda)
threading.Thread(target=server.serve_forever, daemon=True).start()
real, sockets = guide.boto3.client, []
guide.boto3.client = lambda name, **more: real(name, endpoint_url=f"http://127.0.0.1:{server.server_port}", **more)
connect = socket.socket.connect
def watched(self, address):
    sockets.append((self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    self.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))
    return connect(self, address)
socket.socket.connect = watched
while replies:
    try:
        print(guide.migrate("dev", "eu-central-1", "And the functions?"))
    except guide.Refused as refusal:
        print(str(refusal).splitlines()[1].split(" And the functions? Mend")[0])
assert set(sockets) == {(1, 60)}, sockets
"""
    done = guide(script)
    assert done.stdout.splitlines() == [
        "Postgres has taken back the migration that failed and keeps those before it; ClickHouse is as it was.",
        "Postgres is migrated and stays so; ClickHouse stopped where it failed, and figures may be short or fail "
        "until it is done.",
        "The log group /ai-chat-dev/workers tells how far it came.",
        "This code is older than the schema, which stays.",
        "This code is older than the schema, which stays.",
        '{"postgres": [10]}',
    ], done.stderr  # fmt: skip
    words = (ROOT / "lib" / "src" / "migrate.rs").read_text()
    assert "the schema of {store} is not up to date" in words and "which this code is older than" in words


# A deploy onto a stack that exists, with what it does in the order in which it does it.
DEPLOYING = (
    FORMATION
    + """
import builtins, pathlib
done, answers, failing = [], ["y"], []
formation.stack = {"StackStatus": "UPDATE_COMPLETE", "Parameters": [
    {"ParameterKey": name, "ParameterValue": value} for name, value in {
        "AppUrl": "https://app.example.net", "MailFrom": "no-reply@example.net", "AlarmEmail": "",
        "AdminEmails": "", "DomainName": "", "ClickHouseUrl": "https://clickhouse.example.net", "ClickHouseUser": "app",
        "ClickHouseReader": "", "ClickHouseManageReader": "false", "CreateDatabase": "true",
    }.items()]}
formation.resources = {"WorkersMigrate": "ai-chat-dev-workers-migrate"}
guide.identity = lambda: ("1", "eu-central-1")
guide.of_file = lambda stage: {"Stage": stage, "CreateDatabase": "true"}
guide.build = lambda _: done.append("build")
guide.smoke = lambda _: done.append("look")
guide.addresses = lambda *_: ("", "")
guide.unheard = lambda _: []
guide.check_concurrency = guide.check_engine = lambda *_: None
guide.release = lambda *_: "0a"
guide.ROOT = pathlib.Path(sys.argv[1]) / "nowhere"
pathlib.Path.read_bytes = lambda path: str(path).encode()
def run(command):
    [option] = [word for word in map(str, command) if word.endswith("-changeset") and not word.startswith("--no-fail")]
    done.append(option)
    formation.waiting = ["shown"] if option == "--no-execute-changeset" else []
guide.run = run
builtins.input = lambda text: done.append("ask") or answers.pop(0)
class Functions:
    def get_waiter(self, name):
        assert name == "function_updated_v2"
        return self
    def wait(self, FunctionName):
        done.append("wait")
    def update_function_code(self, FunctionName, ZipFile, Architectures):
        assert FunctionName == "ai-chat-dev-workers-migrate" and Architectures == ["arm64"]
        assert ZipFile.endswith(b"/nowhere/target/lambda/workers-migrate/bootstrap.zip"), ZipFile
        done.append("code")
    def invoke(self, FunctionName, Payload):
        import io
        if failing and failing[0] == "asleep":
            code = {"Error": {"Code": "ResourceNotReadyException", "Message": ""}}
            done.append(failing.pop(0))
            raise botocore.exceptions.ClientError(code, "Invoke")
        done.append("migrate")
        text = failing.pop(0) if failing else "{}"
        return {"Payload": io.BytesIO(text.encode())} | ({"FunctionError": "Unhandled"} if text != "{}" else {})
guide.boto3.client = lambda service, **_: Functions() if service == "lambda" else formation
guide.keep_alive = lambda _: None
guide.time.sleep = lambda _: None
def deploy():
    done.clear(), formation.deleted.clear(), formation.waiting.clear()
    try:
        guide.deploy("dev")
    except guide.Refused as refusal:
        done.append(str(refusal))
    print(json.dumps(done + formation.deleted))
"""
)
LOOK_FIRST = ["build", "--no-execute-changeset", "ask"]
MIGRATED_FIRST = [*LOOK_FIRST, "wait", "code", "wait", "migrate"]
AS_AT_FIRST = ["build", "--confirm-changeset", "migrate", "look"]


def lists(printed: str) -> list[list[str]]:
    """The lines that are lists, among what the guide says beside."""
    return [json.loads(line) for line in printed.splitlines() if line.startswith("[")]


def test_a_stack_that_exists_is_migrated_before_its_functions_are_new():
    done = guide(
        DEPLOYING
        + """
deploy()
answers.append("n")
deploy()
answers.append("y")
failing += ["asleep", "internal at a:1: the schema of Postgres is not up to date: internal at b:2"]
deploy()
"""
    )
    whole, refused, failed = lists(done.stdout)
    assert whole == [*MIGRATED_FIRST, "--no-confirm-changeset", "migrate", "look", "shown"], done.stderr
    assert refused == [*LOOK_FIRST, "Nothing was changed: the change set was not executed.", "shown"]
    *steps, sentence, shown = failed
    assert (steps, shown) == ([*MIGRATED_FIRST[:-1], "asleep", "migrate"], "shown")
    assert sentence.startswith("The migration failed: internal at a:1")
    for part in ("Postgres has taken back", "The functions are as they were and go on.", "MIGRATE_LAST=1 make deploy"):
        assert part in sentence


def test_a_migration_follows_where_it_cannot_go_first():
    done = guide(
        DEPLOYING
        + """
guide.os.environ["MIGRATE_LAST"] = "1"
deploy()
del guide.os.environ["MIGRATE_LAST"]
guide.of_file = lambda stage: {"Stage": stage, "CreateDatabase": "true", "DatabaseSecretArn": "arn:aws:restored"}
deploy()
guide.of_file = lambda stage: {"Stage": stage, "CreateDatabase": "true"}
guide.os.environ["ASK_SECRETS"] = "1"
guide.getpass.getpass = lambda text: "new" if "ClickHouse" in text else ""
deploy()
del guide.os.environ["ASK_SECRETS"]
formation.resources = {}
deploy()
formation.stack = None
guide.of_file = lambda stage: {"Stage": stage, "CreateDatabase": "true", "AppUrl": "https://app.example.net",
    "MailFrom": "no-reply@example.net"}
guide.getpass.getpass = lambda text: ""
builtins.input = lambda text: "https://a.example.net" if "ClickHouse;" in text or "URL of ClickHouse" in text else ""
deploy()
"""
    )
    assert lists(done.stdout) == [AS_AT_FIRST] * 5, done.stderr
    assert "MIGRATE_LAST is set: it migrates once the functions are new" in done.stdout
    assert done.stdout.count("This deploy changes DatabaseSecretArn, by which") == 1
    assert done.stdout.count("This deploy changes ClickHousePassword, by which") == 1


def test_whatever_leads_the_migration_to_the_databases_is_known_to_lead_there():
    source = cloudformation.template()
    network = source["Globals"]["Function"]["VpcConfig"]
    words = json.dumps([source["Resources"][name] for name in ("DatabaseSecret", "ClickHouseSecret")] + [network])
    variables = source["Resources"]["WorkersMigrate"]["Properties"]["Environment"]["Variables"]
    words += json.dumps(variables) + json.dumps(source["Conditions"]["DatabaseSecretGiven"])
    named = {name for name in source["Parameters"] if re.search(rf"\b{name}\b", words)}
    # A run makes the reader, or does not; neither keeps it from the databases.
    expected = named - {"ClickHouseReader", "ClickHouseManageReader"} | {"CreateDatabase", "DatabaseSecretKeyArn"}
    done = guide("print(json.dumps(guide.REACHED_BY))")
    assert set(json.loads(done.stdout)) == expected, done.stderr
    # What has no alias is invoked as it was just uploaded.
    assert "AutoPublishAlias" not in source["Resources"]["WorkersMigrate"]["Properties"]


def test_health_is_asked_for_where_no_dns_record_is_waited_for():
    script = (
        FORMATION
        + """
outputs = {"ApiUrl": "https://a1.execute-api.eu-central-1.amazonaws.com/v1", "DomainTarget": "d-1.example.org"}
for given in ({}, {"DomainName": "api.example.net", "HostedZoneId": "Z1"}, {"DomainName": "api.example.net"}):
    formation.stack = {
        "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
        "Outputs": [{"OutputKey": name, "OutputValue": value} for name, value in outputs.items()]}
    print(*guide.addresses("dev", "eu-central-1"))
"""
    )
    done = guide(script)
    gateway, domain = "https://a1.execute-api.eu-central-1.amazonaws.com/v1", "https://api.example.net"
    assert done.stdout.splitlines() == [
        f"{gateway} {gateway}",
        f"{domain} {domain}",
        "The DNS record of api.example.net is made elsewhere; it has to lead to d-1.example.org.",
        f"{domain} {gateway}",
    ], done.stderr


def test_the_build_leaves_its_zips_where_the_template_expects_them(tmp_path):
    folder = tmp_path / "target" / "lambda" / "auth-me"
    program = tmp_path / "cargo"
    program.write_text(f'#!/bin/sh\necho "$@"\n/bin/mkdir -p {folder}\nprintf code > {folder}/bootstrap\n')
    program.chmod(0o755)
    script = f"""
import os, pathlib
guide.TOOLS = guide.ROOT = pathlib.Path({str(tmp_path)!r})
os.environ["PATH"] = {str(tmp_path)!r}
os.environ["CARGO_TARGET_DIR"] = "/elsewhere"
guide.build("arm64")
"""
    done = guide(script)
    words = done.stdout.split()
    assert words[:2] == ["lambda", "build"], done.stderr
    assert words[words.index("--lambda-dir") + 1] == str(folder.parent)
    with zipfile.ZipFile(folder / "bootstrap.zip") as zipped:
        assert zipped.read("bootstrap") == b"code"
    assert not (folder / "bootstrap").exists(), "half a gigabyte that nothing needs"
    places = {item["CodeUri"] for item in cloudformation.functions(cloudformation.template()).values()}
    assert (folder / "bootstrap.zip").relative_to(tmp_path).as_posix() in places


def test_a_release_is_another_one_with_other_parameters_code_or_secrets(tmp_path):
    script = f"""
import pathlib, shutil, zipfile
folder = pathlib.Path({str(tmp_path)!r})
guide.ROOT, source = folder, guide.yaml_parse(guide.TEMPLATE.read_text())
places = [folder / item["Properties"]["CodeUri"] for item in source["Resources"].values()
          if item["Type"] == "AWS::Serverless::Function"]
def write(place, code):
    place.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place, "w") as zipped:
        zipped.writestr("bootstrap", code)
for place in places:
    write(place, b"code")
first = guide.release({{"TrialDays": "3"}}, anew=False)
assert guide.release({{"TrialDays": "3", "PastDueGraceDays": "7"}}, anew=False) == first, "a default in words"
assert guide.release({{"TrialDays": "4"}}, anew=False) != first
assert guide.release({{"TrialDays": "3"}}, anew=True) != first
guide.check({{"Release": first}})
write(places[0], b"other code")
assert guide.release({{"TrialDays": "3"}}, anew=False) != first
print("good")
"""
    done = guide(script)
    assert done.stdout == "good\n", done.stderr


def test_functions_with_an_alias_get_a_version_with_every_release():
    script = """
import logging, policies
logging.disable(logging.WARNING)
def versions(release):
    resources = policies.transformed({**policies.parameters("dev"), "Release": release})["Resources"]
    return {name for name, item in resources.items() if item["Type"] == "AWS::Lambda::Version"}
sets = [versions("0123456789ab"), versions("ba9876543210"), versions("")]
print(json.dumps([len(found) for found in sets] + [len(set.union(*sets))]))
"""
    done = guide(script)
    assert json.loads(done.stdout) == [6, 6, 6, 18], done.stderr


def test_every_deploy_reaches_the_stage_since_a_parameter_may_be_in_the_gateways_own_errors():
    script = """
import logging, time, policies
logging.disable(logging.WARNING)
def deployment(now):
    time.time = lambda: now
    resources = policies.transformed(policies.parameters("dev"))["Resources"]
    [name] = [name for name, item in resources.items() if item["Type"] == "AWS::ApiGateway::Deployment"]
    [stage] = [item for item in resources.values() if item["Type"] == "AWS::ApiGateway::Stage"]
    assert stage["Properties"]["DeploymentId"] == {"Ref": name}
    return name
print(deployment(1) != deployment(2))
"""
    done = guide(script)
    assert done.stdout == "True\n", done.stderr


def test_sqs_is_told_where_letters_belong_and_its_failure_is_reported():
    script = """
class Queues:
    def __init__(self, *last):
        self.tasks, self.started = [{"Status": "RUNNING"}, {"Status": "RUNNING"}, *last], []
    def get_queue_attributes(self, QueueUrl, AttributeNames):
        return {"Attributes": {"QueueArn": f"arn:{QueueUrl}"}}
    def start_message_move_task(self, SourceArn, DestinationArn):
        self.started.append([SourceArn, DestinationArn])
    def list_message_move_tasks(self, SourceArn, MaxResults):
        return {"Results": [self.tasks.pop(0)]}
queues = Queues({"Status": "COMPLETED", "ApproximateNumberOfMessagesMoved": 7})
print(guide.moved_by_sqs(queues, "dlq", "queue", pause=0), queues.started)
try:
    guide.moved_by_sqs(Queues({"Status": "FAILED", "FailureReason": "AccessDenied"}), "dlq", "queue", pause=0)
except guide.Refused as refusal:
    print(refusal)
"""
    done = guide(script)
    assert done.stdout.splitlines() == [
        "7 [['arn:dlq', 'arn:queue']]", "SQS moved 0 messages, then the task was failed: AccessDenied.",
    ], done.stderr  # fmt: skip


def test_a_letter_that_comes_back_is_not_moved_for_ever():
    script = """
class Queues:
    def get_queue_attributes(self, QueueUrl, AttributeNames):
        return {"Attributes": {"ApproximateNumberOfMessages": "12"}}
    def receive_message(self, MaxNumberOfMessages, **_):
        return {"Messages": [{"Body": "refused", "ReceiptHandle": "1"}] * MaxNumberOfMessages}
    def send_message(self, **_):
        pass
    def delete_message(self, **_):
        pass
print(guide.move(Queues(), "dlq", "queue"))
"""
    done = guide(script)
    assert done.stdout == "12\n", done.stderr


def test_dead_letters_go_back_with_their_attributes_and_none_is_deleted_unsent():
    script = """
class Queues:
    def __init__(self):
        self.dead, self.log = [[{"Body": "a", "ReceiptHandle": "1", "MessageAttributes": {
            "reason": {"DataType": "String", "StringValue": "bad"},
            "traceparent": {"DataType": "String", "StringValue": "00"}}},
            {"Body": "b", "ReceiptHandle": "2"}], [{"Body": "c", "ReceiptHandle": "3"}], []], []
    def get_queue_attributes(self, QueueUrl, AttributeNames):
        return {"Attributes": {"ApproximateNumberOfMessages": "3"}}
    def receive_message(self, **_):
        return {"Messages": self.dead.pop(0)}
    def send_message(self, QueueUrl, MessageBody, MessageAttributes):
        if MessageBody == "c":
            raise OSError("down")
        self.log.append([QueueUrl, MessageBody, sorted(MessageAttributes)])
    def delete_message(self, QueueUrl, ReceiptHandle):
        self.log.append([QueueUrl, ReceiptHandle])
queues = Queues()
try:
    guide.move(queues, "dlq", "queue")
except OSError:
    print(json.dumps(queues.log))
"""
    done = guide(script)
    assert json.loads(done.stdout) == [
        ["queue", "a", ["traceparent"]], ["dlq", "1"], ["queue", "b", []], ["dlq", "2"],
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_a_stage_breaks_no_rule(stage):
    done = guide(f"import policies\nprint(policies.faults(policies.transformed(policies.parameters('{stage}'))))")
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_a_deployed_stage_has_the_rules_of_production_in_every_function(stage):
    script = """
import policies
def value(node):
    match node:
        case {"Ref": name}:
            return template["Parameters"][name]["Default"]
        case {"Fn::FindInMap": [mapping, key, name]}:
            return template["Mappings"][mapping][value(key)][name]
        case {"Fn::If": [condition, given, default]}:
            return value(given if value(template["Conditions"][condition]) else default)
        case {"Fn::Not": [negated]}:
            return not value(negated)
        case {"Fn::Equals": [left, right]}:
            return value(left) == value(right)
    return node
template = policies.transformed(policies.parameters(stage))
functions = [item for item in template["Resources"].values() if item["Type"] == "AWS::Lambda::Function"]
given = [item["Properties"]["Environment"]["Variables"] for item in functions]
names = ("STAGE", "TRUSTED_PROXIES", "RATE_LIMIT_PER_MINUTE", "AUTH_LIMITS", "PASSWORD_BLOCKLIST",
    "REQUIRE_EMAIL_VERIFICATION")
print(json.dumps({name: list({value(of[name]) for of in given if name in of}) for name in names}))
"""
    done = guide(f"stage = '{stage}'\n{script}")
    assert json.loads(done.stdout) == {
        "STAGE": [stage], "TRUSTED_PROXIES": [0], "RATE_LIMIT_PER_MINUTE": [100], "AUTH_LIMITS": ["strict"],
        "PASSWORD_BLOCKLIST": ["enforce"], "REQUIRE_EMAIL_VERIFICATION": ["true"],
    }, done.stderr  # fmt: skip


def test_the_policy_check_sees_what_is_too_wide():
    script = """
import policies
template = {"Resources": {
    "WideRole": {"Type": "AWS::IAM::Role", "Properties": {
        "ManagedPolicyArns": ["arn:aws:iam::aws:policy/AdministratorAccess"],
        "Policies": [{"PolicyDocument": {"Statement": [
            {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::b/*"},
            {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": "*"},
            {"Fn::If": ["Given", {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"},
                {"Ref": "AWS::NoValue"}]}]}}]}},
    "Eternal": {"Type": "AWS::Logs::LogGroup", "Properties": {}},
    "Hoard": {"Type": "AWS::DynamoDB::Table", "Properties": {
        "TimeToLiveSpecification": {"AttributeName": "expires", "Enabled": False}}},
    "Cluster": {"Type": "AWS::RDS::DBCluster", "Properties": {"EnableCloudwatchLogsExports": ["postgresql"]}},
    "Lonely": {"Type": "AWS::SQS::Queue", "Properties": {}},
    "Twice": {"Type": "AWS::Scheduler::Schedule", "Properties": {"Name": "EveryMinute"}},
    "Open": {"Type": "AWS::ApiGateway::Deployment", "Properties": {"StageName": "Stage"}},
    "Reader": {"Type": "AWS::Lambda::Function", "Properties": {"Role": {"Fn::GetAtt": ["ReaderRole", "Arn"]},
        "Environment": {"Variables": {"DATABASE_SECRET_ARN": "x"}}}},
    "ReaderAlias": {"Type": "AWS::Lambda::Alias", "Properties": {"FunctionName": {"Ref": "Reader"},
        "ProvisionedConcurrencyConfig": {"ProvisionedConcurrentExecutions": 1}}},
    "Queue": {"Type": "AWS::SQS::Queue", "Properties": {
        "VisibilityTimeout": 59, "RedrivePolicy": {"maxReceiveCount": 5}}},
    "Consumer": {"Type": "AWS::Lambda::Function", "Properties": {"Timeout": 10,
        "Environment": {"Variables": {"EVENTS_MAX_RECEIVE_COUNT": "6"}}}},
    "Consumption": {"Type": "AWS::Lambda::EventSourceMapping", "Properties": {
        "EventSourceArn": {"Fn::GetAtt": ["Queue", "Arn"]}, "FunctionName": {"Ref": "Consumer"}}},
}}
print("\\n".join(policies.faults(template)))
"""
    found = guide(script).stdout
    for fault in (
        "grants the actions s3:*", "grants s3:* on", "grants sqs:SendMessage on *", "grants kms:Decrypt on *",
        "AdministratorAccess",
        "Eternal: keeps logs for ever", "Hoard: keeps what has expired",
        "Lonely: is not encrypted", "Lonely: has neither", "Reader: is not traced",
        "Cluster: writes to a log group that RDS makes",
        "Twice: has a name that another stack", "Open: opens a stage", "DatabaseSecretPolicy: ReaderRole is missing",
        "Reader: is provisioned before", "Queue: shows a message again", "Consumer: EVENTS_MAX_RECEIVE_COUNT is not",
    ):  # fmt: skip
        assert fault in found


def test_a_method_has_metrics_of_its_own_where_they_are_looked_at():
    resources = cloudformation.template()["Resources"]
    watched = set()
    for alarm in resources.values():
        if alarm["Type"] == "AWS::CloudWatch::Alarm":
            named = {item["Name"]: item["Value"] for item in alarm["Properties"].get("Dimensions", [])}
            if "Method" in named:
                watched.add((named["Method"], named["Resource"]))
    body = resources["Dashboard"]["Properties"]["DashboardBody"]["Sub"]
    shown = set(re.findall(r'"(/api/[^"]+)", (?:"Method"|"\.")?, "([A-Z]+)"', body))
    watched |= {(method, path) for path, method in shown}
    settings = resources["Api"]["Properties"]["MethodSettings"]
    kept = {
        (item["HttpMethod"], item["ResourcePath"].removeprefix("/").replace("~1", "/"))
        for item in settings if item["MetricsEnabled"]
    }  # fmt: skip
    assert len(shown) == 2
    assert kept == watched


def test_other_origins_are_allowed_beside_the_frontends():
    variables = cloudformation.template()["Globals"]["Function"]["Environment"]["Variables"]
    assert variables["CORS_ALLOWED_ORIGINS"] == {"Sub": "${AppUrl},${CorsAllowedOrigins}"}


def test_a_line_of_the_access_log_is_json_of_texts_and_names_nobody():
    condition, setting, _ = cloudformation.template()["Resources"]["Api"]["Properties"]["AccessLogSetting"]["If"]
    assert condition == "AccessLogsOn"
    line = json.loads(setting["Format"])
    assert all(value.startswith("$context.") for value in line.values())
    assert not any(word in setting["Format"] for word in ("identity", "userAgent", "context.path", "authorizer"))


def test_the_mail_domain_is_made_for_the_emulator_alone():
    source = cloudformation.template()
    assert source["Resources"]["MailIdentity"]["Condition"] == "Emulated"
    assert source["Conditions"]["Emulated"] == {"Equals": [{"Ref": "Stage"}, "local"]}


def test_mail_may_be_sent_under_a_parent_domain_and_with_a_default_configuration_set():
    script = """
import policies
values = {**policies.parameters("dev"), "MailFrom": "no-reply@mail.example.net", "SesIdentity": "example.net"}
template = policies.transformed(values)
allowed = [json.dumps(statement["Resource"]) for _, statement in policies._statements(template["Resources"])
           if statement.get("Action") == "ses:SendEmail"]
assert len(allowed) == 1 and "configuration-set/*" in allowed[0] and "SesIdentity" in allowed[0], allowed
wide = {"Effect": "Allow", "Action": "ses:SendEmail", "Resource": "arn:aws:ses:us-east-1:1:identity/*"}
other = {"Effect": "Allow", "Action": "ses:DeleteConfigurationSet", "Resource": "arn:aws:ses:x:1:configuration-set/*"}
for statement in (wide, other):
    assert list(policies._statement_faults(statement)), statement
guide.check({"SesIdentity": "no-reply@example.net"})
print("good")
"""
    done = guide(script)
    assert done.stdout == "good\n", done.stderr


def test_a_failing_worker_is_told_by_an_alarm():
    resources = cloudformation.template()["Resources"]
    watched = {
        dimension["Value"]["Ref"]
        for alarm in resources.values() if alarm["Type"] == "AWS::CloudWatch::Alarm"
        for metric in alarm["Properties"].get("Metrics", [])
        if metric.get("MetricStat", {}).get("Metric", {}).get("Namespace") == "AWS/Lambda"
        for dimension in metric["MetricStat"]["Metric"]["Dimensions"]
    }  # fmt: skip
    workers = {
        name for name, item in resources.items()
        if item["Type"] == "AWS::Serverless::Function" and name.startswith("Workers")
    }  # fmt: skip
    # Whoever invokes these by hand looks at the reply.
    assert watched == workers - {"WorkersMigrate", "WorkersSetRole"}


def test_a_connection_outlives_the_longest_run_without_a_statement():
    resources = cloudformation.template()["Resources"]
    longest = max(
        item["Properties"].get("Timeout", 0)
        for item in resources.values()
        if item["Type"] == "AWS::Serverless::Function"
    )
    assert longest < resources["DatabaseProxy"]["Properties"]["IdleClientTimeout"] < 2 * longest


def test_every_alarm_is_in_the_operators_table():
    table = (ROOT / "docs" / "operations.md").read_text().split("## Alarms")[1].split("\n## ")[0]
    documented = {name for row in re.findall(r"^\| ([A-Z][A-Za-z, ]+) \|", table, re.M) for name in row.split(", ")}
    alarms = {
        name.removesuffix("Alarm") for name, item in cloudformation.template()["Resources"].items()
        if item["Type"] == "AWS::CloudWatch::Alarm"
    }  # fmt: skip
    assert alarms == documented - {"Alarm"}


# The rules of AWS's groups that look at bodies and queries, by the tables of the WAF developer guide.
RULES_ON_TEXT = {
    "common": {
        "SizeRestrictions_BODY", "CrossSiteScripting_BODY", "GenericLFI_BODY", "GenericRFI_BODY",
        "EC2MetaDataSSRF_BODY", "SizeRestrictions_QUERYSTRING", "CrossSiteScripting_QUERYARGUMENTS",
        "GenericLFI_QUERYARGUMENTS", "GenericRFI_QUERYARGUMENTS", "RestrictedExtensions_QUERYARGUMENTS",
        "EC2MetaDataSSRF_QUERYARGUMENTS",
    },
    "known-bad-inputs": {
        "JavaDeserializationRCE_BODY", "JavaDeserializationRCE_QUERYSTRING", "Log4JRCE_BODY", "Log4JRCE_QUERYSTRING",
        "ReactJSRCE_BODY",
    },
    "sql-injection": {
        "SQLi_BODY", "SQLi_QUERYARGUMENTS", "SQLiExtendedPatterns_BODY", "SQLiExtendedPatterns_QUERYARGUMENTS",
    },
}  # fmt: skip


def test_what_a_schedule_runs_fails_once_and_is_offered_again_where_the_next_run_is_far_away():
    scheduled = {
        name: [event["Properties"] for event in item["Properties"].get("Events", {}).values()
               if event["Type"] == "ScheduleV2"]
        for name, item in cloudformation.template()["Resources"].items() if item["Type"] == "AWS::Serverless::Function"
    }  # fmt: skip
    scheduled = {name: schedules for name, schedules in scheduled.items() if schedules}
    assert len(scheduled) == 4
    for name, schedules in scheduled.items():
        invoked = cloudformation.template()["Resources"][name]["Properties"]["EventInvokeConfig"]
        assert invoked["MaximumRetryAttempts"] == 0, name
        every_minute = [schedule["ScheduleExpression"] == "rate(1 minute)" for schedule in schedules]
        for is_frequent, schedule in zip(every_minute, schedules, strict=True):
            assert (schedule["RetryPolicy"]["MaximumRetryAttempts"] == 0) == is_frequent, name
        # A minute's event that has waited is no use any more; a night's has to wait.
        assert (invoked.get("MaximumEventAgeInSeconds") == 60) == all(every_minute), name


def test_a_net_that_is_not_there_any_more_is_missed():
    resources = cloudformation.template()["Resources"].values()
    alarms = [item["Properties"] for item in resources if item["Type"] == "AWS::CloudWatch::Alarm"]
    silent = {alarm["MetricName"]: alarm for alarm in alarms if alarm.get("Statistic") == "SampleCount"}
    assert set(silent) == {"OutboxAge", "QuotaImbalances", "AnalyticsDaysRebuilt"}
    # This one also tells of a comparison that never comes to its end.
    [unlisted] = [alarm for alarm in alarms if alarm.get("MetricName") == "StripeUnlisted"]
    assert (unlisted["TreatMissingData"], unlisted["Statistic"]) == ("breaching", "Minimum")
    assert unlisted["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    for alarm in silent.values():
        assert alarm["TreatMissingData"] == "breaching" and alarm["ComparisonOperator"] == "LessThanThreshold"
        seconds = alarm["Period"] * alarm["EvaluationPeriods"]
        # What CloudWatch takes.
        assert seconds <= (604_800 if alarm["Period"] >= 3600 else 86_400)
    for nightly in ("QuotaImbalances", "AnalyticsDaysRebuilt"):
        # A day, the hour in which the schedule may repeat, and the quarter of an hour that a run may take.
        assert silent[nightly]["Period"] * silent[nightly]["EvaluationPeriods"] >= (24 + 1 + 1) * 3600


def test_webhooks_and_what_people_write_pass_the_firewall():
    rules = {rule["Name"]: rule for rule in cloudformation.template()["Resources"]["Firewall"]["Properties"]["Rules"]}
    aside = rules["rate"]["Statement"]["RateBasedStatement"]["ScopeDownStatement"]["NotStatement"]["Statement"]
    method, paths = aside["AndStatement"]["Statements"]
    # The stage bounds this method of the path alone.
    assert method["ByteMatchStatement"]["FieldToMatch"] == {"Method": {}}
    assert method["ByteMatchStatement"]["SearchString"] == "POST"
    webhook = re.compile(paths["RegexMatchStatement"]["RegexString"])
    assert webhook.match("/api/billing/webhook") and webhook.match("/v1/api/billing/webhook")
    assert not webhook.match("/api/billing/webhooks") and not webhook.match("/x/api/billing/webhook")
    for name, texts in RULES_ON_TEXT.items():
        overrides = rules[name]["Statement"]["ManagedRuleGroupStatement"]["RuleActionOverrides"]
        assert {rule["Name"] for rule in overrides if rule["ActionToUse"] == {"Count": {}}} == texts


def test_an_address_can_take_neither_all_webhooks_nor_all_sign_ins():
    template = cloudformation.template()
    rules = {rule["Name"]: rule for rule in template["Resources"]["Firewall"]["Properties"]["Rules"]}
    assert len({rule["Priority"] for rule in rules.values()}) == len(rules)
    asides = rules["rate"]["Statement"]["RateBasedStatement"]["ScopeDownStatement"]["NotStatement"]["Statement"]
    webhooks, sign_ins = (rules[name]["Statement"]["RateBasedStatement"] for name in ("webhooks", "sign-ins"))
    assert webhooks["ScopeDownStatement"] == asides, "what the one rule leaves out the other one counts"
    assert sign_ins["Limit"] == {"Ref": "WafSignInsPerMinute"}
    method, path = sign_ins["ScopeDownStatement"]["AndStatement"]["Statements"]
    assert method["ByteMatchStatement"]["SearchString"] == "POST"
    match = path["RegexMatchStatement"]
    assert [item["Type"] for item in match["TextTransformations"]] == ["URL_DECODE", "NORMALIZE_PATH"]
    for address in ("/api/auth/signin", "/v1/api/auth/signup", "/v1/api/auth/signin/"):
        assert re.match(match["RegexString"], address), address
    assert not re.match(match["RegexString"], "/v1/api/auth/signout")
    # In a minute one address may take less of either than all may in ten seconds.
    prod = template["Mappings"]["StageDefaults"]["prod"]
    assert template["Parameters"]["WafSignInsPerMinute"]["Default"] <= 10 * prod["CredentialsRate"]
    assert webhooks["Limit"] <= 10 * prod["ChatRate"]


def test_the_stage_bounds_webhooks():
    properties = cloudformation.template()["Resources"]["Api"]["Properties"]
    assert properties["StageName"] == "v1"
    [webhook] = [
        item for item in properties["MethodSettings"]
        if (item["HttpMethod"], item["ResourcePath"].replace("~1", "/")) == ("POST", "//api/billing/webhook")
    ]  # fmt: skip
    assert webhook["ThrottlingRateLimit"] and webhook["ThrottlingBurstLimit"]


def test_zones_are_the_first_two_unless_two_are_named():
    resources = cloudformation.template()["Resources"]
    chosen = []
    for name in ("PublicSubnet", "PrivateSubnetA", "PrivateSubnetB"):
        condition, given, default = resources[name]["Properties"]["AvailabilityZone"]["If"]
        assert condition == "ZonesGiven"
        assert given["Select"][1] == {"Split": [",", {"Sub": "${AvailabilityZones},"}]}
        assert default["Select"][1] == {"GetAZs": ""}
        assert given["Select"][0] == default["Select"][0]
        chosen.append(given["Select"][0])
    assert chosen == [0, 0, 1]
    done = guide("""
assert "AvailabilityZones" in guide.visible(guide.declared())
guide.check({"AvailabilityZones": "us-east-1a,us-east-1b"})
for zones in ("us-east-1a", "us-east-1a, us-east-1b"):
    try:
        guide.check({"AvailabilityZones": zones})
    except guide.Refused as refusal:
        print(refusal)
""")
    assert done.stdout.count("AvailabilityZones does not match") == 2, done.stderr


def test_a_restored_database_takes_the_place_of_the_one_that_was_made():
    resources = cloudformation.template()["Resources"]
    connection = resources["DatabaseSecret"]["Properties"]["SecretString"]["If"]
    statement, key = resources["DatabaseSecretPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert connection[0] == statement["Resource"]["If"][0] == "DatabaseSecretGiven"
    assert "DatabaseSecretArn" in connection[1]["Sub"]
    assert statement["Resource"]["If"][1] == {"Ref": "DatabaseSecretArn"}
    condition, decrypt, otherwise = key["If"]
    assert (condition, otherwise) == ("DatabaseSecretKeyGiven", {"Ref": "AWS::NoValue"})
    assert (decrypt["Action"], decrypt["Resource"]) == ("kms:Decrypt", {"Ref": "DatabaseSecretKeyArn"})


def test_every_environment_variable_is_in_the_operators_table():
    table = (ROOT / "docs" / "operations.md").read_text().split("## Environment variables")[1]
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", table))
    source = cloudformation.template()
    given = set(source["Globals"]["Function"]["Environment"]["Variables"])
    for properties in cloudformation.functions(source).values():
        given |= set(properties.get("Environment", {}).get("Variables", {}))
    code = "".join(path.read_text() for path in (ROOT / "lib" / "src").rglob("*.rs"))
    read = set(re.findall(r'(?:required|optional|parsed|list|secrets::read(?:::<\w+>)?)\(\s*"([A-Z][A-Z0-9_]+)"', code))
    assert len(read) > 10, "the search for what the code reads finds nothing"
    assert given | read <= documented, sorted((given | read) - documented)
