"""Functions may do what their roles allow, and nothing else.

The emulator lets every call through, so that a permission which the template
forgets is missed by nobody until the function runs in an account. Here each
function signs with an access key that carries its name, and what its role, as
it was deployed, does not allow is refused in the words of AWS. Whoever signs
with another key, such as the deploy, a test or a developer's shell, may do
everything.

Where it cannot be said here what AWS would say, the answer is no: to a call
whose action or resource ``actions`` does not know; to what a statement allows
under a condition, and what one denies under a condition. The template has none.
"""

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from servers.asgi import read_body, reply
from servers.aws.actions import ACCOUNT, Unknown, arn_of_secret, needed, service_of

logger = logging.getLogger("permissions")

# In the access key of a function, before its name.
MARK = "function."
SIGNER = re.compile(rb"Credential=" + re.escape(MARK).encode() + rb"([^/]+)/[^/]+/([^/]+)/")

# Beside the state: what was refused since the data were made, one JSON object a line.
REFUSED = "refused.jsonl"

# Resources of a stack whose change may change what a policy says.
DECISIVE = re.compile(r"AWS::(IAM::|SecretsManager::Secret$)")

DENIED = "with an explicit deny in an identity-based policy"
# The status of a refusal by service; the others answer 403.
STATUS = {"dynamodb": 400, "secretsmanager": 400}


def access_key(function: str) -> str:
    """The access key that a function signs with, by which it is known here."""
    return f"{MARK}{function}"


def apply() -> None:
    """Give functions keys of their own, and stand before everything that they call."""
    from ministack import app as gateway
    from ministack.core import lambda_runtime
    from ministack.services import iam, lambda_svc
    from ministack.services.cloudformation import provisioners

    lambda_runtime.execution_credentials = lambda_svc.execution_credentials = _credentials
    roles = Roles()
    handle = iam.handle_request

    async def handle_request(*args: Any) -> Any:
        try:
            return await handle(*args)
        finally:
            roles.forget()

    iam.handle_request = handle_request
    for resource_type, handlers in provisioners._RESOURCE_HANDLERS.items():
        if DECISIVE.match(resource_type):
            for name in {"create", "update", "delete"} & handlers.keys():
                handlers[name] = _followed_by(roles.forget, handlers[name])
    gateway.app = _Guard(gateway.app, roles)


def _credentials(configuration: dict) -> dict[str, str]:
    """What the emulator starts a function with. Nobody checks the secret."""
    return {
        "AWS_ACCESS_KEY_ID": access_key(configuration["FunctionName"]),
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "",
    }


def _followed_by(then: Callable[[], None], handler: Callable) -> Callable:
    @wraps(handler)
    def followed(*args: Any, **options: Any) -> Any:
        try:
            return handler(*args, **options)
        finally:
            then()

    return followed


class Roles:
    """What the functions' roles allow, looked up once."""

    def __init__(self) -> None:
        from ministack.services import lambda_svc

        self._functions = lambda_svc._functions
        self.forget()

    def forget(self) -> None:
        """After a change of any role or policy."""
        # In place of the old ones: whoever is at work on an answer must not put it among the new ones.
        self._policies: dict[str, list] = {}
        self._allowed: set[tuple[str, str, str]] = set()

    def of(self, function: str, region: str) -> str | None:
        """The ARN of a function's role."""
        record = self._functions.get_scoped(ACCOUNT, region, function)
        return record and record["config"].get("Role")

    def verdict(self, role: str, action: str, resource: str) -> str:
        """`Allow`, `Deny` or `ImplicitDeny`."""
        allowed, question = self._allowed, (role, action, resource)
        if question in allowed:
            return "Allow"
        verdict = self._evaluate(*question)
        if verdict == "Allow":
            allowed.add(question)
        return verdict

    def _evaluate(self, role: str, action: str, resource: str) -> str:
        from ministack.core import iam_evaluator as evaluator
        from ministack.services import iam

        policies, name = self._policies, role.rpartition("/")[2]
        if role not in policies:
            policies[role] = [list(_strict(policy)) for policy in evaluator._gather_role_policies(name, ACCOUNT)]
        context = evaluator.EvalContext(role, "AssumedRole", ACCOUNT, action, resource, resource.split(":")[3])
        boundary = evaluator._permissions_boundary(iam._roles, name, ACCOUNT)
        result = evaluator.evaluate(context, policies[role], *boundary)
        # A secret or a queue may have a policy of its own.
        if own := evaluator._resource_policy(resource.split(":")[2], resource):
            result = evaluator.combine_resource_policy(result, context, *own, limits=tuple(boundary))
        return result.decision


def _strict(statements: list) -> Iterator[Any]:
    """A policy's statements without those that allow what cannot be judged; those that deny it deny always."""
    for statement in statements:
        # MiniStack takes a list that is missing for one of everything.
        whole = (statement.actions or statement.not_actions) and (statement.resources or statement.not_resources)
        if statement.effect == "Deny" or (whole and not statement.conditions):
            # Its Ref of a secret is the name, which in an account is the ARN.
            resources = [arn_of_secret(resource) or resource for resource in statement.resources]
            others = [arn_of_secret(resource) or resource for resource in statement.not_resources]
            yield replace(statement, conditions={}, resources=resources, not_resources=others)


class _Guard:
    """The emulator's ASGI application, behind the roles."""

    def __init__(self, app: Callable[..., Awaitable[None]], roles: Roles) -> None:
        self._app = app
        self._roles = roles
        self._refusals: set[str] = set()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        signer = _signer(scope) if scope["type"] == "http" else None
        if signer is None:
            await self._app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        target = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-amz-target"), "")
        service = service_of(target, scope["path"])
        refusal = self._refusal(service, target, scope, *signer, body)
        if refusal is None:
            await self._app(scope, _again(body, receive), send)
        else:
            await _refuse(service, refusal, send)

    def _refusal(self, service: str, target: str, scope: dict, function: str, region: str, body: bytes) -> str | None:
        """Why a function may not make this call."""
        method, path = scope["method"], scope["path"]
        role = self._roles.of(function, region)
        try:
            if role is None:
                raise Unknown
            calls = needed(service, method, path, target, region, body)
        except Unknown:
            call = f"{method} {path} {target}".rstrip()
            return self._told(role, function, call, "servers/aws/actions.py does not know what that does; teach it.")
        for action, resource in calls:
            verdict = self._roles.verdict(role, action, resource)
            if verdict != "Allow":
                because = (
                    DENIED if verdict == "Deny" else f"because no identity-based policy allows the {action} action"
                )
                advice = f"Grant it to {function} in template.yaml, or do not call it."
                return self._told(role, function, f"{action} on resource: {resource} {because}", advice)
        return None

    def _told(self, role: str | None, function: str, call: str, advice: str) -> str:
        """A refusal, written down once: who may not do something will try it again."""
        caller = f"arn:aws:sts::{ACCOUNT}:assumed-role/{(role or '').rpartition('/')[2]}/{function}"
        refusal = f"User: {caller} is not authorized to perform: {call}"
        if refusal not in self._refusals:
            self._refusals.add(refusal)
            logger.error("%s. %s", refusal, advice)
            with (Path(os.environ["STATE_DIR"]) / REFUSED).open("a") as file:
                file.write(json.dumps({"refusal": refusal, "advice": advice}) + "\n")
        return refusal


def _signer(scope: dict) -> tuple[str, str] | None:
    """The function that signed a request, and the region it signed for."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            found = SIGNER.search(value)
            return (found[1].decode("latin-1"), found[2].decode("latin-1")) if found else None
    return None


def _again(body: bytes, receive: Callable) -> Callable:
    """A body that was read already, then what else the connection tells."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> dict:
        return unread.pop() if unread else await receive()

    return read


async def _refuse(service: str, refusal: str, send: Callable) -> None:
    """In the form that each service's SDK reads."""
    kind = "com.amazon.coral.service#AccessDeniedException"
    headers = {"content-type": "application/x-amz-json-1.0"}
    if service in STATUS:
        content = {"__type": kind, "Message": refusal}
    else:
        content = {"__type": kind, "message": refusal}
        headers["x-amzn-errortype"] = "AccessDeniedException"
    if service == "sqs":
        headers["x-amzn-query-error"] = "AccessDenied;Sender"
    text = json.dumps(content).encode()
    headers["content-length"] = str(len(text))
    await reply(send, STATUS.get(service, 403), headers.items(), text)
