"""What of a deploy can be tested without an AWS account. The guide has an environment of its own."""

import json
import re
import subprocess

import pytest

import cloudformation
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


@pytest.mark.parametrize("typed", ["", "yes\n", "prod\n", "ai-chat-dev\n"])
def test_production_is_not_destroyed_unless_its_name_is_typed(typed):
    done = command("destroy", "prod", typed=typed)
    assert done.returncode == 1
    assert "Nothing was deleted" in done.stderr


@pytest.mark.parametrize(("stage", "typed"), [("dev", ""), ("prod", "ai-chat-prod\n")])
def test_a_confirmed_destruction_goes_on_to_the_account(stage, typed):
    done = command("destroy", stage, typed=typed)
    assert done.returncode == 1
    assert "There is no region" in done.stderr


def test_a_deploy_without_region_or_stage_says_so():
    assert "There is no region" in command("deploy", "prod").stderr
    assert command("deploy", "local").returncode == 2
    assert command("deploy").returncode == 2


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
assert guide.overrides({"B": "2", "A": "1"}) == ["ParameterKey=A,ParameterValue=1", "ParameterKey=B,ParameterValue=2"]
print("good")
"""
    done = guide(script)
    assert done.stdout == "good\n", done.stderr


def test_dead_letters_go_back_with_their_attributes_and_none_is_deleted_unsent():
    script = """
class Queues:
    def __init__(self):
        self.dead, self.log = [[{"Body": "a", "ReceiptHandle": "1", "MessageAttributes": {
            "reason": {"DataType": "String", "StringValue": "bad"},
            "traceparent": {"DataType": "String", "StringValue": "00"}}},
            {"Body": "b", "ReceiptHandle": "2"}], [{"Body": "c", "ReceiptHandle": "3"}], []], []
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


def test_the_policy_check_sees_what_is_too_wide():
    script = """
import policies
template = {"Resources": {
    "WideRole": {"Type": "AWS::IAM::Role", "Properties": {
        "ManagedPolicyArns": ["arn:aws:iam::aws:policy/AdministratorAccess"],
        "Policies": [{"PolicyDocument": {"Statement": [
            {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::b/*"},
            {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": "*"}]}}]}},
    "Eternal": {"Type": "AWS::Logs::LogGroup", "Properties": {}},
    "Lonely": {"Type": "AWS::SQS::Queue", "Properties": {}},
    "Twice": {"Type": "AWS::Scheduler::Schedule", "Properties": {"Name": "EveryMinute"}},
    "Open": {"Type": "AWS::ApiGateway::Deployment", "Properties": {"StageName": "Stage"}},
    "Reader": {"Type": "AWS::Lambda::Function", "Properties": {"Role": {"Fn::GetAtt": ["ReaderRole", "Arn"]},
        "Environment": {"Variables": {"DATABASE_SECRET_ARN": "x"}}}},
}}
print("\\n".join(policies.faults(template)))
"""
    found = guide(script).stdout
    for fault in (
        "grants the actions s3:*", "grants s3:* on", "grants sqs:SendMessage on *", "AdministratorAccess",
        "Eternal: keeps logs for ever", "Lonely: is not encrypted", "Lonely: has neither", "Reader: is not traced",
        "Twice: has a name that another stack", "Open: opens a stage", "DatabaseSecretPolicy: ReaderRole is missing",
    ):  # fmt: skip
        assert fault in found


def test_the_mail_domain_is_made_for_the_emulator_alone():
    source = cloudformation.template()
    assert source["Resources"]["MailIdentity"]["Condition"] == "Emulated"
    assert source["Conditions"]["Emulated"] == {"Equals": [{"Ref": "Stage"}, "local"]}


def test_a_restored_database_takes_the_place_of_the_one_that_was_made():
    resources = cloudformation.template()["Resources"]
    connection = resources["DatabaseSecret"]["Properties"]["SecretString"]["If"]
    [statement] = resources["DatabaseSecretPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert connection[0] == statement["Resource"]["If"][0] == "DatabaseSecretGiven"
    assert "DatabaseSecretArn" in connection[1]["Sub"]
    assert statement["Resource"]["If"][1] == {"Ref": "DatabaseSecretArn"}


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
