"""Which IAM actions on which resources a call needs: of the services that functions call, and of no others."""

import json
import os
from collections.abc import Iterator
from email.utils import parseaddr
from urllib.parse import urlsplit

ACCOUNT = os.environ.get("MINISTACK_ACCOUNT_ID", "000000000000")
# What every request or init of the product calls, by the prefix of X-Amz-Target.
SERVICES = {"DynamoDB_20120810": "dynamodb", "AmazonSQS": "sqs", "secretsmanager": "secretsmanager"}
MAIL = "/v2/email/"
SEND_EMAIL = ("POST", "/v2/email/outbound-emails")
# The action of each member of a transaction's item.
TRANSACTION = {
    "Get": "GetItem",
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}


class Unknown(Exception):
    """A call of which it is not known here what it does to what."""


def service_of(target: str, path: str) -> str:
    """The service's name in ARNs, empty for one that no function calls."""
    return SERVICES.get(target.partition(".")[0]) or ("ses" if path.startswith(MAIL) else "")


def needed(service: str, method: str, path: str, target: str, region: str, body: bytes) -> list[tuple[str, str]]:
    """Actions and the ARNs that they have to be allowed on, at least one."""
    operation = target.rpartition(".")[2]
    try:
        fields = json.loads(body)
        if service == "dynamodb":
            found = list(_of_items(operation, region, fields))
        elif service == "sqs":
            # A batch is allowed by what allows each of its entries.
            queue = urlsplit(fields["QueueUrl"]).path.rpartition("/")[2]
            found = [(f"sqs:{operation.removesuffix('Batch')}", f"arn:aws:sqs:{region}:{ACCOUNT}:{queue}")]
        elif service == "secretsmanager":
            name = fields["SecretId"]
            arn = arn_of_secret(name) or f"arn:aws:secretsmanager:{region}:{ACCOUNT}:secret:{name}"
            found = [(f"secretsmanager:{operation}", arn)]
        elif (method, path) == SEND_EMAIL and "Simple" in fields["Content"]:
            found = list(_of_a_mail(region, fields))
        else:
            found = []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unknown from None
    if not found:
        raise Unknown
    return found


def _of_items(operation: str, region: str, fields: dict) -> Iterator[tuple[str, str]]:
    def table(name: str) -> str:
        return name if name.startswith("arn:") else f"arn:aws:dynamodb:{region}:{ACCOUNT}:table/{name}"

    if operation in ("TransactWriteItems", "TransactGetItems"):
        for item in fields["TransactItems"]:
            for kind, member in item.items():
                yield f"dynamodb:{TRANSACTION[kind]}", table(member["TableName"])
    elif operation in ("BatchWriteItem", "BatchGetItem"):
        for name in fields["RequestItems"]:
            yield f"dynamodb:{operation}", table(name)
    else:
        index = f"/index/{fields['IndexName']}" if "IndexName" in fields else ""
        yield f"dynamodb:{operation}", table(fields["TableName"]) + index


def _of_a_mail(region: str, fields: dict) -> Iterator[tuple[str, str]]:
    """SES asks for the narrowest identity that fits: the sender's address, its domain, or a parent of that."""
    from ministack.services import ses_v2

    address = parseaddr(fields["FromEmailAddress"])[1]
    domain = address.partition("@")[2]
    labels = domain.split(".")
    fitting = [address, *(".".join(labels[start:]) for start in range(len(labels)))]
    known = [name for name in fitting if ses_v2._identities.contains_scoped(ACCOUNT, region, name)]
    yield "ses:SendEmail", f"arn:aws:ses:{region}:{ACCOUNT}:identity/{(known or [domain])[0]}"
    if name := fields.get("ConfigurationSetName"):
        yield "ses:SendEmail", f"arn:aws:ses:{region}:{ACCOUNT}:configuration-set/{name}"


def arn_of_secret(name_or_arn: str) -> str | None:
    """The ARN of a secret that is there."""
    from ministack.services import secretsmanager

    for secret in secretsmanager._secrets.all_values():
        if name_or_arn in (secret["Name"], secret["ARN"]):
            return secret["ARN"]
    return None
