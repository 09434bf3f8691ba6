"""Who fuzzes: fresh users for the routes of users, the administrator for those of administrators."""

import itertools
import os
import random
import threading
import uuid

import requests
import schemathesis

API = os.environ["API_URL"].rstrip("/")
# Below the limit of requests that a user has in a minute.
USES = 60
ENDS_ITS_SESSION = ("/api/auth/signout", "/api/auth/refresh", "/api/auth/sessions/{id}", "/api/auth/change-password")
FOR_ADMINS = ("/metrics", "/api/analytics/users/signups")

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


class Tokens:
    """A user's token, replaced by another user's after so many uses."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.uses = itertools.count()
        self.token = ""
        self.admin = ""

    def take(self, path: str) -> str:
        with self.lock:
            if path in FOR_ADMINS:
                self.admin = self.admin or session(
                    "/api/auth/signin", email=os.environ["ADMIN_EMAIL"], password=os.environ["ADMIN_PASSWORD"]
                )
                return self.admin
            if path in ENDS_ITS_SESSION:
                return self.sign_up()
            if next(self.uses) % USES == 0:
                self.token = self.sign_up()
            return self.token

    @staticmethod
    def sign_up() -> str:
        return session("/api/auth/signup", email=f"{uuid.uuid4().hex}@example.com", password=uuid.uuid4().hex)


tokens = Tokens()


@schemathesis.auth(refresh_interval=None)
class Bearer:
    """Authenticates each request by a session token."""

    def get(self, case, context):
        return tokens.take(case.operation.path)

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context, case, kwargs):
    case.headers = case.headers or {}
    case.headers["X-Forwarded-For"] = address()
