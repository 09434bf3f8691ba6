"""The local AWS keeps what it acknowledged through `kill -9`."""

import io
import sys
import time
import urllib.error
import urllib.request
import zipfile


def drain(sqs, url):
    """Receive and delete until the queue stays empty."""
    bodies = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        bodies += [message["Body"] for message in messages]
        entries = [{"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(messages)]
        sqs.delete_message_batch(QueueUrl=url, Entries=entries)
    return bodies


def test_messages_survive_and_deleted_ones_stay_deleted(emulator):
    sqs = emulator.client("sqs")
    url = sqs.create_queue(QueueName="events")["QueueUrl"]
    emulator.checkpoint()
    for number in range(30):
        sqs.send_message(QueueUrl=url, MessageBody=str(number))
    received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    for message in received[:4]:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    emulator.kill()
    emulator.start()
    gone = {message["Body"] for message in received[:4]}
    assert sorted(map(int, drain(sqs, url))) == [n for n in range(30) if str(n) not in gone]


def test_a_queue_made_again_is_empty(emulator):
    sqs = emulator.client("sqs")
    url = sqs.create_queue(QueueName="events")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="old")
    sqs.purge_queue(QueueUrl=url)
    emulator.checkpoint()
    emulator.kill()
    emulator.start()
    assert drain(sqs, url) == []


# A function that asks the emulator for something before it is ready, as one that needs secrets does.
BOOTSTRAP = """\
#!{python}
import os
from urllib.request import Request, urlopen

urlopen("http://127.0.0.1:{port}/_ministack/health").close()
invocation = f"http://{{os.environ['AWS_LAMBDA_RUNTIME_API']}}/2018-06-01/runtime/invocation"
while True:
    with urlopen(f"{{invocation}}/next") as event:
        event.read()
        request_id = event.headers["Lambda-Runtime-Aws-Request-Id"]
    urlopen(Request(f"{{invocation}}/{{request_id}}/response", b"{{}}")).close()
"""


# A machine that is slow between reading the state and listening.
SLOW = """\
import socket
import time

listen = socket.socket.listen


def slow(listener, *backlog):
    if listener.getsockname()[1] == {port}:
        time.sleep(2)
    listen(listener, *backlog)


socket.socket.listen = slow
"""


def test_a_batch_that_waits_at_the_start_is_handled(emulator, tmp_path):
    sqs, functions = emulator.client("sqs"), emulator.client("lambda")
    url = sqs.create_queue(QueueName="events", Attributes={"VisibilityTimeout": "360"})["QueueUrl"]
    names = ["QueueArn", "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as zipped:
        bootstrap = zipfile.ZipInfo("bootstrap")
        bootstrap.external_attr = 0o755 << 16
        zipped.writestr(bootstrap, BOOTSTRAP.format(python=sys.executable, port=emulator.port))
    functions.create_function(
        FunctionName="ingest",
        Runtime="provided.al2023",
        Handler="bootstrap",
        Role="arn:aws:iam::000000000000:role/r",
        Code={"ZipFile": code.getvalue()},
        Timeout=10,
    )
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]["QueueArn"]
    functions.create_event_source_mapping(
        EventSourceArn=arn, FunctionName="ingest", BatchSize=100, MaximumBatchingWindowInSeconds=1
    )
    emulator.checkpoint()
    sqs.send_message(QueueUrl=url, MessageBody="1")
    emulator.kill()
    # Its window is over when the emulator is back.
    time.sleep(1)
    (tmp_path / "sitecustomize.py").write_text(SLOW.format(port=emulator.port))
    emulator.environment["PYTHONPATH"] = str(tmp_path)
    emulator.start()
    deadline = time.monotonic() + 30
    while True:
        attributes = emulator.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        if attributes[names[1]] == attributes[names[2]] == "0":
            return
        assert time.monotonic() < deadline, attributes
        time.sleep(0.1)


def test_items_survive_as_they_were_last_written(emulator, tmp_path):
    dynamodb = emulator.client("dynamodb")
    dynamodb.create_table(
        TableName="sessions",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
    )
    emulator.checkpoint()
    for key in ("kept", "deleted", "counted"):
        dynamodb.put_item(TableName="sessions", Item={"pk": {"S": key}, "n": {"N": "1"}, "b": {"B": b"\x00\xff"}})
    dynamodb.delete_item(TableName="sessions", Key={"pk": {"S": "deleted"}})
    dynamodb.update_item(
        TableName="sessions",
        Key={"pk": {"S": "counted"}},
        UpdateExpression="ADD n :one",
        ExpressionAttributeValues={":one": {"N": "1"}},
    )
    emulator.checkpoint()
    assert b"counted" not in (tmp_path / "dynamodb.json").read_bytes(), "a snapshot is the longer the more it holds"
    assert len(dynamodb.scan(TableName="sessions")["Items"]) == 2
    emulator.kill()
    emulator.start()
    items = {item["pk"]["S"]: item for item in dynamodb.scan(TableName="sessions")["Items"]}
    assert sorted(items) == ["counted", "kept"]
    assert (items["counted"]["n"], items["kept"]["b"]) == ({"N": "2"}, {"B": b"\x00\xff"})


def test_the_outbox_survives(emulator):
    ses = emulator.client("sesv2")
    ses.create_email_identity(EmailIdentity="example.com")
    ses.send_email(
        FromEmailAddress="a@example.com",
        Destination={"ToAddresses": ["b@example.org"]},
        Content={"Simple": {"Subject": {"Data": "Hello"}, "Body": {"Text": {"Data": "Text"}}}},
    )
    emulator.kill()
    emulator.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{emulator.port}/_ministack/ses/messages", timeout=10) as reply:
        assert b"Hello" in reply.read()


def test_web_pages_reach_the_deployed_api_and_nothing_else(emulator):
    def status(path, **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{emulator.port}{path}", b"{}", headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    page = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    for path in (
        "/2015-03-31/functions",
        "/2015-03-31/functions/f/invocations",
        "/_ministack/reset",
        "/_local/checkpoint",
    ):
        assert status(path, **page) == 403
        assert status(path, Host="evil.example") == 403
    assert emulator.client("lambda").list_functions()["Functions"] == []
    # There is no such API, which it says itself.
    assert status("/_aws/execute-api/a1b2c3d4/v1/api/chat", **page) == 404
    assert status("/_aws/execute-api/a1b2c3d4/v1/api/chat", Host="evil.example") == 403
