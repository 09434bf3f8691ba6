"""Who fuzzes: fresh users for the routes of users, the administrator for those of administrators."""

import ast
import itertools
import os
import random
import re
import threading
import time
import uuid
import zlib
from collections.abc import Callable

import requests
import schemathesis
from schemathesis.core import NotSet

API = os.environ["API_URL"].rstrip("/")
# Below the limit of requests that a user has in a minute: for some, a thing is made and looked up before.
USES = 30
ENDS_ITS_SESSION = ("/api/auth/signout", "/api/auth/refresh", "/api/auth/sessions/{id}", "/api/auth/change-password")
FOR_ADMINS = ("/metrics", "/api/analytics/")
# A key that is taken, as the description has it.
KEY = re.compile(r"[\t -~]*[!-~][\t -~]*")
LONGEST_KEY = 255
# Tries at making a thing.
PATIENCE = 30
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
MIGRATE = (
    f"{os.environ['AWS_ENDPOINT_URL'].rstrip('/')}/2015-03-31/functions/"
    f"{os.environ['STACK_NAME']}-workers-migrate/invocations"
)

# Python 3.11 counts the depth of what it parses for all threads together, and so fails when hypothesis reads a
# function's source for both workers at once.
parse, parsing = ast.parse, threading.Lock()


def parse_alone(*arguments, **options) -> ast.AST:
    with parsing:
        return parse(*arguments, **options)


ast.parse = parse_alone

addresses = random.Random(0)
issued: set[str] = set()
lock = threading.Lock()


def address() -> str:
    """Another client each time, so that the limits on addresses are not what is tested."""
    return f"10.{addresses.randrange(256)}.{addresses.randrange(256)}.{addresses.randrange(256)}"


def ask(method: str, path: str, body: dict | None = None, token: str | None = None) -> requests.Response:
    headers = {"x-forwarded-for": address()} | ({"authorization": f"Bearer {token}"} if token else {})
    for _ in range(PATIENCE):
        reply = requests.request(method, f"{API}{path}", json=body, headers=headers, timeout=30)
        # A request of the other worker may hold all tokens of the plan for the moment.
        if reply.status_code != requests.codes.too_many_requests:
            break
        time.sleep(0.1)
    reply.raise_for_status()
    return reply


def session(path: str, **credentials: str) -> str:
    token = ask("POST", path, {"transport": "bearer", **credentials}).json()["sessionToken"]
    issued.add(token)
    return token


def sign_up() -> str:
    return session("/api/auth/signup", email=f"{uuid.uuid4().hex}@example.com", password=uuid.uuid4().hex)


def administrator() -> str:
    """A new one, seeded as the first one is, since each may ask so often in a minute and no more."""
    person = {"email": f"{uuid.uuid4().hex}@example.com", "password": uuid.uuid4().hex}
    reply = requests.post(MIGRATE, json={"admin": person}, timeout=60)
    if "X-Amz-Function-Error" in reply.headers:
        raise RuntimeError(reply.text)
    return session("/api/auth/signin", **person)


class Tokens:
    """A person's token, replaced by another one's after so many uses."""

    def __init__(self, new_person: Callable[[], str]) -> None:
        self.new_person = new_person
        self.uses = itertools.count()
        self.token = ""

    def take(self) -> str:
        if next(self.uses) % USES == 0:
            self.token = self.new_person()
        return self.token


def own_session(token: str) -> str:
    return ask("GET", "/api/auth/sessions", token=token).json()["sessions"][0]["id"]


def conversation(token: str) -> str:
    return ask("POST", "/api/chat", {"message": "Hello"}, token).json()["conversationId"]


def stream(token: str) -> str:
    events = ask("POST", "/api/chat", {"message": "Hello", "stream": True}, token).text
    return re.search(r'"streamId":"([^"]+)"', events).group(1)


def subscription(token: str) -> str:
    try:
        ask("POST", "/api/subscriptions", {"plan": "pro", "paymentMethodId": "pm_card_visa"}, token)
    except requests.HTTPError as error:
        # Another request may have made one.
        if error.response.status_code != requests.codes.conflict:
            raise
    return ask("GET", "/api/subscriptions", token=token).json()["subscriptions"][0]["id"]


THINGS = {"sessions": own_session, "conversations": conversation, "streams": stream, "subscriptions": subscription}
THING = re.compile(rf"/({'|'.join(THINGS)})/{{id}}")

things: dict[tuple[str, str], str] = {}


def thing_of(token: str, kind: str, ends: bool) -> str:
    """The id of something that the token's owner has, and that does not outlive the request if that ends it."""
    with lock:
        thing = things.pop((token, kind), None) or THINGS[kind](token)
        if not ends:
            things[token, kind] = thing
    return thing


users, administrators = Tokens(sign_up), Tokens(administrator)


def token_for(path: str) -> str:
    with lock:
        if path.startswith(FOR_ADMINS) and not path.endswith("/health"):
            return administrators.take()
        return sign_up() if path in ENDS_ITS_SESSION else users.take()


def own_headers(case):
    """Cases share what was generated for them."""
    return case.headers.copy() if case.headers else {}


@schemathesis.auth(refresh_interval=None)
class Bearer:
    """Authenticates each request by a session token."""

    def get(self, case, context):
        return token_for(case.operation.path)

    def set(self, case, data, context):
        case.headers = own_headers(case)
        case.headers["Authorization"] = f"Bearer {data}"


def found(case) -> str | None:
    """An id that leads somewhere, for every other one that was generated and leads nowhere."""
    kind = THING.search(case.operation.path)
    token = str(case.headers.get("Authorization", "")).removeprefix("Bearer ")
    generated = str((case.path_parameters or {}).get("id", ""))
    if not kind or token not in issued or not ID.fullmatch(generated):
        return None
    body = None if isinstance(case.body, NotSet) else case.body
    if zlib.crc32(repr((generated, case.query, body)).encode()) % 2:
        return None
    return thing_of(token, kind.group(1), ends=case.method == "DELETE")


@schemathesis.hook
def before_call(context, case, kwargs):
    case.headers = own_headers(case)
    case.headers["X-Forwarded-For"] = address()
    # What was generated is the same each time, and a key that was used before answers for what comes with it.
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and len(key) <= LONGEST_KEY - 32 and KEY.fullmatch(key):
        case.headers["Idempotency-Key"] = key + uuid.uuid4().hex
    if own := found(case):
        case.path_parameters = {**case.path_parameters, "id": own}
