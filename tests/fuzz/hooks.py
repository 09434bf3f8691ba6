"""Who fuzzes: fresh users for the routes of users, the administrator for those of administrators."""

import itertools
import os
import random
import re
import threading
import uuid
from collections.abc import Callable

import requests
import schemathesis

API = os.environ["API_URL"].rstrip("/")
# Below the limit of requests that a user has in a minute.
USES = 60
ENDS_ITS_SESSION = ("/api/auth/signout", "/api/auth/refresh", "/api/auth/sessions/{id}", "/api/auth/change-password")
FOR_ADMINS = ("/metrics", "/api/analytics/")
# A key that is taken, as the description has it.
KEY = re.compile(r"[\t -~]*[!-~][\t -~]*")
LONGEST_KEY = 255
MIGRATE = (
    f"{os.environ['AWS_ENDPOINT_URL'].rstrip('/')}/2015-03-31/functions/"
    f"{os.environ['STACK_NAME']}-workers-migrate/invocations"
)

addresses = random.Random(0)


def address() -> str:
    """Another client each time, so that the limits on addresses are not what is tested."""
    return f"10.{addresses.randrange(256)}.{addresses.randrange(256)}.{addresses.randrange(256)}"


def session(path: str, **credentials: str) -> str:
    reply = requests.post(
        f"{API}{path}",
        json={"transport": "bearer", **credentials},
        headers={"x-forwarded-for": address()},
        timeout=30,
    )
    reply.raise_for_status()
    return reply.json()["sessionToken"]


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


lock = threading.Lock()
users, administrators = Tokens(sign_up), Tokens(administrator)


def token_for(path: str) -> str:
    with lock:
        if path.startswith(FOR_ADMINS) and not path.endswith("/health"):
            return administrators.take()
        return sign_up() if path in ENDS_ITS_SESSION else users.take()


@schemathesis.auth(refresh_interval=None)
class Bearer:
    """Authenticates each request by a session token."""

    def get(self, case, context):
        return token_for(case.operation.path)

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context, case, kwargs):
    case.headers = case.headers or {}
    case.headers["X-Forwarded-For"] = address()
    # What was generated is the same each time, and a key that was used before answers for what comes with it.
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and len(key) <= LONGEST_KEY - 32 and KEY.fullmatch(key):
        case.headers["Idempotency-Key"] = key + uuid.uuid4().hex
