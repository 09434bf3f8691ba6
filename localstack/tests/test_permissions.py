"""A function of the local AWS may do what its role allows, and nothing else."""

import io
import json
import sys
import zipfile

import pytest
from botocore.exceptions import ClientError

import functions
import services
import testing
from servers.aws.permissions import REFUSED, access_key
from settings import PROFILES

ACCOUNT = "arn:aws:{}:us-east-1:000000000000:{}"
KEY = {"pk": {"S": "1"}}
# A function that tells who it is.
BOOTSTRAP = """\
#!{python}
import json
import os
from urllib.request import Request, urlopen

invocation = f"http://{{os.environ['AWS_LAMBDA_RUNTIME_API']}}/2018-06-01/runtime/invocation"
while True:
    with urlopen(f"{{invocation}}/next") as event:
        event.read()
        request_id = event.headers["Lambda-Runtime-Aws-Request-Id"]
    reply = json.dumps(os.environ["AWS_ACCESS_KEY_ID"]).encode()
    urlopen(Request(f"{{invocation}}/{{request_id}}/response", reply)).close()
"""


def allow(action, *resources, **more):
    return {"Effect": "Allow", "Action": action, "Resource": list(resources), **more}


class Function:
    """A deployed function and its role, and clients as the function has them."""

    def __init__(self, emulator, *statements):
        self.emulator = emulator
        self.iam = emulator.client("iam")
        role = self.iam.create_role(RoleName="role", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as zipped:
            bootstrap = zipfile.ZipInfo("bootstrap")
            bootstrap.external_attr = 0o755 << 16
            zipped.writestr(bootstrap, BOOTSTRAP.format(python=sys.executable))
        emulator.client("lambda").create_function(
            FunctionName="app-f",
            Runtime="provided.al2023",
            Handler="bootstrap",
            Role=role,
            Code={"ZipFile": code.getvalue()},
        )
        if statements:
            self.let(*statements)

    def let(self, *statements):
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.iam.put_role_policy(RoleName="role", PolicyName="own", PolicyDocument=document)

    def client(self, service):
        return self.emulator.client(service, access_key("app-f"))


def make_tables(emulator):
    for name in ("mine", "other"):
        emulator.client("dynamodb").create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": n, "AttributeType": "S"} for n in ("pk", "owner")],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "by-owner",
                    "KeySchema": [{"AttributeName": "owner", "KeyType": "HASH"}],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
        )


def table(name):
    return ACCOUNT.format("dynamodb", f"table/{name}")


def refused(call, *args, **arguments):
    """The refusal's status and sentence."""
    with pytest.raises(ClientError) as caught:
        call(*args, **arguments)
    reply = caught.value.response
    assert reply["Error"]["Code"] in ("AccessDeniedException", "AccessDenied"), reply
    return reply["ResponseMetadata"]["HTTPStatusCode"], reply["Error"]["Message"]


def test_an_item_is_read_and_not_written(emulator, tmp_path):
    make_tables(emulator)
    items = Function(emulator, allow("dynamodb:GetItem", table("mine"))).client("dynamodb")
    assert "Item" not in items.get_item(TableName="mine", Key=KEY)
    assert refused(items.put_item, TableName="mine", Item=KEY) == (
        400,
        "User: arn:aws:sts::000000000000:assumed-role/role/app-f is not authorized to perform: dynamodb:PutItem"
        f" on resource: {table('mine')} because no identity-based policy allows the dynamodb:PutItem action",
    )
    assert table("other") in refused(items.get_item, TableName="other", Key=KEY)[1]
    assert len((tmp_path / REFUSED).read_text().splitlines()) == 2
    # Whoever is no function does what he likes.
    emulator.client("dynamodb").put_item(TableName="mine", Item=KEY)
    assert items.get_item(TableName="mine", Key=KEY)["Item"] == KEY


def test_each_table_of_a_batch_or_transaction_and_an_index_are_asked_for(emulator):
    make_tables(emulator)
    granted = allow(["dynamodb:BatchWriteItem", "dynamodb:PutItem", "dynamodb:Query"], table("mine"))
    function = Function(emulator, granted)
    items = function.client("dynamodb")
    put = {"PutRequest": {"Item": KEY}}
    items.batch_write_item(RequestItems={"mine": [put]})
    assert table("other") in refused(items.batch_write_item, RequestItems={"mine": [put], "other": [put]})[1]
    items.transact_write_items(TransactItems=[{"Put": {"TableName": "mine", "Item": KEY}}])
    for more in (
        {"Put": {"TableName": "other", "Item": KEY}},
        {"Delete": {"TableName": "mine", "Key": {"pk": {"S": "2"}}}},
    ):
        refused(items.transact_write_items, TransactItems=[{"Put": {"TableName": "mine", "Item": KEY}}, more])
    query = {"KeyConditionExpression": "#k = :v", "ExpressionAttributeValues": {":v": {"S": "1"}}}
    items.query(TableName="mine", ExpressionAttributeNames={"#k": "pk"}, **query)
    query |= {"TableName": "mine", "IndexName": "by-owner", "ExpressionAttributeNames": {"#k": "owner"}}
    assert f"{table('mine')}/index/by-owner" in refused(items.query, **query)[1]
    function.let(allow("dynamodb:Query", f"{table('mine')}/index/*"))
    items.query(**query)


def test_what_cannot_be_told_is_refused(emulator):
    function = Function(emulator, allow("*", "*"))
    refused(function.client("dynamodb").list_tables)
    refused(function.client("dynamodb").execute_statement, Statement="SELECT * FROM mine")
    refused(function.client("sqs").list_queues)
    refused(function.client("secretsmanager").list_secrets)
    refused(function.client("lambda").list_functions)
    other = emulator.client("dynamodb", access_key("app-unknown"))
    refused(other.get_item, TableName="mine", Key=KEY)


def test_conditions_never_help_and_denials_win(emulator):
    make_tables(emulator)
    here = {"StringEquals": {"aws:RequestedRegion": "us-east-1"}}
    function = Function(emulator, allow("dynamodb:*", table("mine"), Condition=here))
    items = function.client("dynamodb")
    refused(items.get_item, TableName="mine", Key=KEY)
    deny = {"Effect": "Deny", "Action": "dynamodb:Get*", "NotResource": table("mine")}
    function.let(allow("dynamodb:*", table("*")), deny)
    items.get_item(TableName="mine", Key=KEY)
    assert "explicit deny" in refused(items.get_item, TableName="other", Key=KEY)[1]
    items.put_item(TableName="other", Item=KEY)
    function.let(allow("dynamodb:*", table("*")), {**deny, "Condition": here, "Action": "dynamodb:PutItem"})
    refused(items.put_item, TableName="other", Item=KEY)


def test_messages_are_sent_by_an_attached_policy_that_outlives_a_crash(emulator):
    function, queues = Function(emulator), emulator.client("sqs")
    urls = [queues.create_queue(QueueName=name)["QueueUrl"] for name in ("events", "mail")]
    document = {"Version": "2012-10-17", "Statement": allow("sqs:SendMessage", ACCOUNT.format("sqs", "events"))}
    policy = function.iam.create_policy(PolicyName="send", PolicyDocument=json.dumps(document))["Policy"]["Arn"]
    sender = function.client("sqs")
    assert refused(sender.send_message, QueueUrl=urls[0], MessageBody="1")[0] == 403
    function.iam.attach_role_policy(RoleName="role", PolicyArn=policy)
    emulator.checkpoint()
    emulator.kill()
    emulator.start()
    sender.send_message(QueueUrl=urls[0], MessageBody="1")
    sender.send_message_batch(QueueUrl=urls[0], Entries=[{"Id": "1", "MessageBody": "2"}])
    refused(sender.send_message_batch, QueueUrl=urls[1], Entries=[{"Id": "1", "MessageBody": "2"}])
    refused(sender.receive_message, QueueUrl=urls[0])
    assert len(queues.receive_message(QueueUrl=urls[0], MaxNumberOfMessages=10)["Messages"]) == 2


def test_a_secret_is_one_whether_named_or_by_its_arn(emulator):
    secrets = emulator.client("secretsmanager")
    arn = {name: secrets.create_secret(Name=name, SecretString="s")["ARN"] for name in ("mine", "other")}
    function = Function(emulator)
    reader = function.client("secretsmanager")
    # The emulator's Ref of a secret is its name.
    for granted in (arn["mine"], "mine"):
        function.let(allow("secretsmanager:GetSecretValue", granted))
        for secret in ("mine", arn["mine"]):
            assert reader.get_secret_value(SecretId=secret)["SecretString"] == "s"
        for secret in ("other", arn["other"], "unknown"):
            assert refused(reader.get_secret_value, SecretId=secret)[0] == 400
    refused(reader.put_secret_value, SecretId="mine", SecretString="t")
    # What a secret's own policy allows, the role need not.
    everybody = {**allow("secretsmanager:GetSecretValue", "*"), "Principal": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": everybody})
    secrets.put_resource_policy(SecretId="other", ResourcePolicy=policy)
    assert reader.get_secret_value(SecretId="other")["SecretString"] == "s"


def test_mail_is_sent_under_the_narrowest_identity(emulator):
    emulator.client("sesv2").create_email_identity(EmailIdentity="example.com")
    function = Function(emulator, allow("ses:SendEmail", ACCOUNT.format("ses", "identity/example.com")))
    mailer = function.client("sesv2")
    simple = {"Simple": {"Subject": {"Data": "Hello"}, "Body": {"Text": {"Data": "Text"}}}}
    mail = {"Destination": {"ToAddresses": ["b@example.org"]}, "Content": simple}
    for sender in ("a@example.com", "A <a@mail.example.com>"):
        mailer.send_email(FromEmailAddress=sender, **mail)
    assert refused(mailer.send_email, FromEmailAddress="a@example.net", **mail)[0] == 403
    refused(mailer.send_email, FromEmailAddress="a@example.com", ConfigurationSetName="set", **mail)
    raw = {"Raw": {"Data": b"Subject: Hello\r\n\r\nText"}}
    refused(mailer.send_email, FromEmailAddress="a@example.com", Content=raw)
    emulator.client("sesv2").create_email_identity(EmailIdentity="a@example.com")
    assert "identity/a@example.com" in refused(mailer.send_email, FromEmailAddress="a@example.com", **mail)[1]


def test_a_function_has_its_own_key_however_it_is_started(emulator):
    Function(emulator)
    reply = emulator.client("lambda").invoke(FunctionName="app-f")
    assert json.loads(reply["Payload"].read()) == access_key("app-f")
    beside = functions.environment(PROFILES["stack"], "f", {"AWS_ACCESS_KEY_ID": "test"})
    assert beside["AWS_ACCESS_KEY_ID"] == access_key("app-f")


def test_a_test_run_fails_over_what_was_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(services, "aws_state", lambda _profile: tmp_path)
    assert testing._beyond_the_roles(PROFILES["test"]) == []
    (tmp_path / REFUSED).write_text(json.dumps({"refusal": "User: f is not authorized", "advice": "Grant it."}) + "\n")
    assert testing._beyond_the_roles(PROFILES["test"]) == ["permissions"]
    assert "User: f is not authorized. Grant it." in capsys.readouterr().out
