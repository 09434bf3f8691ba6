"""`make chaos`: people use the product while each of its dependencies is killed and held up; then nothing may be wrong.

Checked in the end, over everybody who took part: what was acknowledged is stored, each event is in ClickHouse once,
the quota's ledger is balanced, no question is without its answer, and sessions are as people left them. Checked on
the way: no status but those of the contract, and recovery.
"""

from __future__ import annotations

import collections
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "localstack"))

import deploy
import tools
from services import CLICKHOUSE_USER
from settings import PROFILES
from supervision import Supervisor

PROFILE = PROFILES[os.environ["STACK_PROFILE"]]
SUPERVISOR = Supervisor(PROFILE)
API = PROFILE.url("router")
PASSWORD = "correct horse battery"
PEOPLE = 16
# Seconds between two requests of one person, so that the rate limit leaves them at work.
PAUSE = 0.65
KILLED = ["postgres", "clickhouse", "aws", "llm", "stripe", "traces", "fn-chat-send-1", "fn-auth-me-1"]
HELD_UP = ["postgres", "clickhouse", "aws", "llm", "stripe", "traces", "fn-chat-send-1"]
HELD_UP_SECONDS = 4
# A dependency that was killed is back, and what uses it works again.
PATIENCE = 90
# A reservation that stands still for this long is abandoned.
ABANDONED_SECONDS = 65
BY_CONTRACT = {200, 201, 204, 429, 500, 502, 503, 504}
# The function or the router that had the request is gone: there is nobody to answer.
CUT = 0


class Person(threading.Thread):
    """Signs up, then chats, looks at its account, and signs in and out elsewhere until told to stop.

    Remembers what was acknowledged.
    """

    def __init__(self, world: World, number: int) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.address = f"10.1.0.{number}"
        self.ended: list[str] = []
        self.email = f"chaos-{uuid.uuid4()}@example.com"
        self.token = ""
        self.user = ""
        self.messages: set[str] = set()

    def run(self) -> None:
        turn = 0
        while not self.world.over.is_set():
            turn += 1
            self.world.over.wait(PAUSE)
            if not self.user:
                self.sign_up()
            elif turn % 10 == 9:
                self.sign_in_and_out()
            elif turn % 3 == 0:
                status, _ = self.world.ask("GET", "/api/auth/me", self.token)
                if status == 401:
                    self.world.wrong.append(f"{self.email} was signed out by a fault")
            else:
                self.chat(stream=turn % 3 == 1)

    def sign_up(self) -> None:
        status, text = self.world.ask(
            "POST",
            "/api/auth/signup",
            "",
            {"email": self.email, "password": PASSWORD, "transport": "bearer"},
            self.address,
        )
        if status == 201:
            # Faults last longer than the JWT's holders would notice, the session token never runs out meanwhile.
            self.token, self.user = json.loads(text)["sessionToken"], json.loads(text)["user"]["id"]
        elif status == 409:
            # Stored, but the acknowledgement was lost.
            self.email = f"chaos-{uuid.uuid4()}@example.com"

    def sign_in_and_out(self) -> None:
        """On another device; a sign-out that was acknowledged holds."""
        body = {"email": self.email, "password": PASSWORD, "transport": "bearer"}
        status, text = self.world.ask("POST", "/api/auth/signin", "", body, self.address)
        if status != 200:
            return
        token = json.loads(text)["sessionToken"]
        if self.world.ask("POST", "/api/auth/signout", token)[0] == 204:
            self.ended.append(token)

    def chat(self, stream: bool) -> None:
        status, text = self.world.ask("POST", "/api/chat", self.token, {"message": "Hello", "stream": stream})
        if status != 200:
            return
        if not stream:
            self.messages.add(json.loads(text)["message"]["id"])
            return
        for block in text.split("\n\n"):
            if "event: done" in block:
                data = next(line for line in block.splitlines() if line.startswith("data:"))
                self.messages.add(json.loads(data.removeprefix("data:"))["messageId"])


class World:
    """What everybody shares: the statuses seen, and what was wrong."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.fault = "none"
        self.seen: collections.Counter[tuple[str, int]] = collections.Counter()
        self.wrong: list[str] = []

    def ask(self, method: str, path: str, token: str, body: dict | None = None, address: str = "") -> tuple[int, str]:
        """One request; its status is held against the contract."""
        status, text = request(method, path, token, body, address)
        # Read afterwards: the fault may have come while the request was under way.
        fault = self.fault
        self.seen[fault, status] += 1
        if status not in BY_CONTRACT | {401, 409, CUT}:
            self.wrong.append(f"{method} {path} answered {status} during {fault}: {text[:200]}")
        if fault == "none" and (status >= 500 or status == CUT):
            self.wrong.append(
                f"{method} {path} answered {status or 'nothing'} although nothing was broken: {text[:200]}"
            )
        if status >= 500 and '"code"' not in text and "problem" not in text:
            self.wrong.append(f"{method} {path} answered {status} without a problem during {fault}: {text[:200]}")
        return status, text


def request(method: str, path: str, token: str = "", body: dict | None = None, address: str = "") -> tuple[int, str]:
    """A status and a body; 0 when the connection was cut or nothing came."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    if address:
        headers["x-forwarded-for"] = address
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(API + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=15) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return CUT, ""


def sql(query: str) -> list[str]:
    """Lines of Postgres's answer."""
    psql = tools.ensure_postgres() / "psql"
    done = subprocess.run([psql, PROFILE.database_url, "-XAtqc", query], capture_output=True, text=True, check=True)
    return done.stdout.split()


def figures(query: str) -> list[str]:
    """Lines of ClickHouse's answer."""
    parameters = urllib.parse.urlencode({"database": "analytics"})
    headers = {"X-ClickHouse-User": CLICKHOUSE_USER, "X-ClickHouse-Key": PROFILE.secret("clickhouse")}
    asked = urllib.request.Request(f"{PROFILE.url('clickhouse')}/?{parameters}", query.encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return reply.read().decode().split()


def until(what: str, holds, patience: float = PATIENCE) -> None:
    """Asks until it holds."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        time.sleep(0.2)


def works() -> bool:
    """A stranger can sign up and gets an answer, and all dependencies are up."""
    body = {"email": f"chaos-{uuid.uuid4()}@example.com", "password": PASSWORD}
    status, text = request("POST", "/api/auth/signup", "", body)
    if status != 201:
        return False
    token = json.loads(text)["token"]
    return request("POST", "/api/chat", token, {"message": "Hello"})[0] == 200 and request("GET", "/health")[0] == 200


def hold_up(name: str) -> None:
    """Stops a process and all that it started, and lets them go on."""
    pids = _family(SUPERVISOR.pid(name))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(HELD_UP_SECONDS)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def sessions_stand(world: World, signed_in: list[str], signed_out: list[str]) -> None:
    """Asked of each token when nothing is broken."""
    for tokens, wanted in ((signed_in, 200), (signed_out, 401)):
        for number, token in enumerate(tokens):
            # Without a session it is the address whose requests are counted.
            status, _ = request("GET", "/api/auth/me", token, address=f"10.2.{number // 250}.{number % 250}")
            if status != wanted:
                world.wrong.append(f"a session answered {status} instead of {wanted} after {world.fault}")


def main() -> int:
    """Faults one after the other, then the reckoning."""
    world = World()
    until("the product works", works)
    signed_in, signed_out = [], []
    for tokens in (signed_in, signed_out):
        for _ in range(3):
            body = {"email": f"chaos-{uuid.uuid4()}@example.com", "password": PASSWORD, "transport": "bearer"}
            tokens.append(json.loads(request("POST", "/api/auth/signup", "", body)[1])["sessionToken"])
    for token in signed_out:
        assert request("POST", "/api/auth/signout", token)[0] == 204

    started = time.monotonic()
    people = [Person(world, number) for number in range(PEOPLE)]
    for person in people:
        person.start()
    faults = [("kill", name) for name in KILLED] + [("hold up", name) for name in HELD_UP]
    for kind, name in faults:
        time.sleep(2)
        world.fault = f"{kind} {name}"
        began = time.monotonic()
        SUPERVISOR.kill(name) if kind == "kill" else hold_up(name)
        until(f"the product works after {world.fault}", works)
        print(f"{world.fault:24} works again after {time.monotonic() - began:5.1f} s", flush=True)
        sessions_stand(world, signed_in, signed_out)
    world.fault = "none"
    world.over.set()
    for person in people:
        person.join(60)

    for (fault, status), count in sorted(world.seen.items()):
        print(f"{fault:24} {status or 'cut':>4} {count:6}")
    people = [person for person in people if person.user]
    ended = signed_out + [token for person in people for token in person.ended]
    sessions_stand(world, signed_in + [person.token for person in people], ended)
    print(f"\n{len(faults)} faults in {time.monotonic() - started:.0f} s, {sum(world.seen.values())} requests")
    print(f"{len(people) + len(signed_in)} sessions stand, {len(ended)} that were signed out are ended")
    reckon(world, people)
    for line in world.wrong:
        print(f"WRONG: {line}")
    print(f"\n{'An invariant was broken.' if world.wrong else 'All invariants held.'}")
    return 1 if world.wrong else 0


def reckon(world: World, people: list[Person]) -> None:
    """Postgres and ClickHouse against what people were told, and against each other."""
    users = ",".join(f"'{person.user}'" for person in people)
    told = {message for person in people for message in person.messages}
    of_them = f"c.user_id IN ({users}) AND m.role = 'assistant'"
    stored = set(sql(f"SELECT m.id FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE {of_them}"))
    if told - stored:
        world.wrong.append(f"{len(told - stored)} answers that were given are not stored")

    until("the outbox is empty", lambda: sql("SELECT count(*) FROM outbox") == ["0"])
    query = f"SELECT message_id FROM events WHERE type = 'chat.message_sent' AND subject IN ({users})"
    try:
        until("every stored answer has its event", lambda: set(figures(query)) >= stored)
    except AssertionError as error:
        world.wrong.append(f"{error}: {len(stored - set(figures(query)))} of {len(stored)} are missing")
    events = figures(query)
    if len(events) != len(set(events)) or set(events) - stored:
        world.wrong.append(f"{len(events)} events for {len(stored)} answers")
    signups = figures(f"SELECT subject FROM events WHERE type = 'user.signup' AND subject IN ({users})")
    if sorted(signups) != sorted(person.user for person in people):
        world.wrong.append(f"{len(signups)} sign-up events for {len(people)} people")

    deadline = time.monotonic() + ABANDONED_SECONDS
    reserved = f"SELECT coalesce(sum(reserved), 0) FROM quota_periods WHERE user_id IN ({users})"
    while sql(reserved) != ["0"] and time.monotonic() < deadline:
        time.sleep(1)
    deploy.invoke(PROFILE, "workers-sweep-quota", {})
    left = sql(f"SELECT count(*) FROM quota_reservations WHERE user_id IN ({users})")
    if sql(reserved) != ["0"] or left != ["0"]:
        world.wrong.append(f"{sql(reserved)[0]} tokens are reserved by {left[0]} reservations that nobody uses")
    used = sql(f"SELECT coalesce(sum(used), 0) FROM quota_periods WHERE user_id IN ({users})")
    ledger = sql(f"SELECT coalesce(sum(input_tokens + output_tokens), 0) FROM usage_ledger WHERE user_id IN ({users})")
    if used != ledger:
        world.wrong.append(f"{used[0]} tokens are counted as used, the ledger has {ledger[0]}")
    alone = sql(
        "SELECT count(*) FROM (SELECT 1 FROM messages m JOIN conversations c ON c.id = m.conversation_id"
        f" WHERE c.user_id IN ({users}) GROUP BY c.id"
        " HAVING count(*) FILTER (WHERE m.role = 'user') <> count(*) FILTER (WHERE m.role = 'assistant')) AS uneven"
    )
    if alone != ["0"]:
        world.wrong.append(f"{alone[0]} conversations have questions without answers, or the other way round")
    print(f"{len(told)} answers were given, {len(stored)} are stored, {len(events)} events tell of them")
    print(f"{len(people)} people signed up, {len(signups)} events tell of it; the outbox is empty")
    print(f"{used[0]} tokens are counted as used, the ledger has {ledger[0]}; {left[0]} reservations are left")
    print(f"{alone[0]} conversations with questions that have no answer")


if __name__ == "__main__":
    sys.exit(main())
