"""Run the stack's processes under supervisord, and talk to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ports
from settings import ROOT, VENV, Failure, Profile

# Answers of supervisord that mean "it is so already".
NOT_RUNNING, BAD_NAME = 70, 10
# States in which a process is not there and will not come by itself.
DOWN = ("STOPPED", "EXITED", "FATAL")
# How the names of the functions' processes begin.
FUNCTION = "fn-"
# Processes write their logs themselves: a line through supervisord costs a millisecond, as long as what it tells of.
LOGGED = 'log=$0; exec "$@" >>"$log" 2>&1'


@dataclass(frozen=True)
class Program:
    """One supervised process. A change of any field restarts it at the next `apply`."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    priority: int = 100

    def section(self, logs: Path) -> str:
        """This program in supervisord's configuration."""
        command = ["/bin/sh", "-c", LOGGED, str(logs / f"{self.name}.log"), *self.command]
        settings = {
            "command": " ".join(_quoted(part) for part in command),
            "environment": ",".join(f"{name}={_environment_value(value)}" for name, value in self.environment.items()),
            "directory": _escaped(str(self.folder)),
            "priority": self.priority,
            "autostart": "true",
            "autorestart": "true",
            # A process that ends sooner is retried with growing pauses, then given up.
            "startsecs": 1,
            "startretries": 10,
            "stopsignal": self.stop_signal,
            "stopwaitsecs": self.stop_seconds,
            "stopasgroup": "false",
            "killasgroup": "true",
            "stdout_logfile": "NONE",
            "stderr_logfile": "NONE",
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        return "\n".join([f"[program:{self.name}]", *lines])


class Supervisor:
    """The supervisord of one stack."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._configuration = profile.dir / "supervisord.conf"
        self._password = profile.secret("supervisor")
        address = f"http://local:{self._password}@127.0.0.1:{profile.port('supervisor')}/RPC2"
        self._rpc = xmlrpc.client.ServerProxy(address).supervisor

    def running(self) -> bool:
        """Whether this stack's supervisord answers."""
        try:
            return self._rpc.getIdentification() == self._identity()
        except (OSError, xmlrpc.client.Error):
            return False

    def apply(self, programs: Iterable[Program]) -> None:
        """Make exactly these programs run, restarting only those that changed."""
        self.profile.logs.mkdir(parents=True, exist_ok=True)
        self._write(list(programs))
        if not self.running():
            self._start()
            return
        added, changed, removed = self._rpc.reloadConfig()[0]
        self._remove({*removed, *changed})
        for name in (*changed, *added):
            self._rpc.addProcessGroup(name)
        self.resume()

    def _remove(self, names: set[str]) -> None:
        """All at once: one after the other a change in `lib` would take half a minute."""
        for name in names:
            self._rpc.stopProcessGroup(name, False)
        self._await_stopped(names)
        for name in names:
            self._rpc.removeProcessGroup(name)

    def _await_stopped(self, names: set[str]) -> None:
        """supervisord escalates to SIGKILL by itself, so this ends."""
        deadline = time.monotonic() + 60
        while stopping := [p["name"] for p in self.status() if p["name"] in names and p["statename"] not in DOWN]:
            if time.monotonic() > deadline:
                raise Failure(f"{', '.join(stopping)} did not stop; see {self.profile.logs}.")
            time.sleep(0.05)

    def resume(self) -> None:
        """Start again what was stopped or given up."""
        for process in self.status():
            if process["statename"] in DOWN:
                self.start(process["name"])

    def shutdown(self) -> None:
        """Stop every process and supervisord itself; nothing happens when it is not there."""
        if not self.running():
            return
        # supervisord itself stops one program a second.
        functions = {process["name"] for process in self.status() if process["name"].startswith(FUNCTION)}
        self._remove(functions)
        pid = self._rpc.getPID()
        self._rpc.shutdown()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise Failure(f"The stack does not stop; {self.profile.logs / 'supervisord.log'} says where it is.")
            time.sleep(0.1)

    def status(self) -> list[dict]:
        """One record a process: name, statename, pid, description."""
        return self._rpc.getAllProcessInfo()

    def start(self, name: str) -> None:
        """Start one process; it may be running already."""
        try:
            self._rpc.startProcess(name, False)
        except xmlrpc.client.Fault as fault:
            self._explain(fault, name, ignore=60)

    def stop(self, name: str) -> None:
        """Stop one process and keep it stopped."""
        try:
            self._rpc.stopProcess(name)
        except xmlrpc.client.Fault as fault:
            self._explain(fault, name, ignore=NOT_RUNNING)

    def kill(self, name: str) -> None:
        """`kill -9` one process; supervisord starts it again."""
        os.kill(self.pid(name), signal.SIGKILL)

    def pid(self, name: str) -> int:
        """The process id of what runs by that name."""
        try:
            pid = self._rpc.getProcessInfo(name)["pid"]
        except xmlrpc.client.Fault as fault:
            self._explain(fault, name)
            raise
        if not pid:
            raise Failure(f"{name} is not running; `make status` shows what is.")
        return pid

    def _explain(self, fault: xmlrpc.client.Fault, name: str, ignore: int | None = None) -> None:
        if fault.faultCode == BAD_NAME:
            raise Failure(f"There is no process {name}; `make status` lists them.") from fault
        if fault.faultCode != ignore:
            raise Failure(f"{name}: {fault.faultString}; see {self.profile.logs / name}.log.") from fault

    def _identity(self) -> str:
        return f"{self.profile.name} {self.profile.dir}"

    def _write(self, programs: list[Program]) -> None:
        head = f"""\
[supervisord]
nodaemon = false
identifier = {_escaped(self._identity())}
logfile = {_escaped(str(self.profile.logs / "supervisord.log"))}
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = {_escaped(str(self.profile.dir / "supervisord.pid"))}
childlogdir = {_escaped(str(self.profile.logs))}
minfds = 8192

[inet_http_server]
port = 127.0.0.1:{self.profile.port("supervisor")}
username = local
password = {self._password}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
        sections = [program.section(self.profile.logs) for program in programs]
        descriptor = os.open(self._configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n\n".join([head.rstrip(), *sections]) + "\n")

    def _start(self) -> None:
        """Start supervisord with nothing of the caller's environment but what programs need.

        A developer's own AWS credentials or proxy settings must not reach the stack.
        """
        kept = ("PATH", "HOME", "LANG", "TZ", "CARGO_HOME", "RUSTUP_HOME", "SSL_CERT_FILE")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment[ports.MARK] = str(self.profile.dir)
        done = subprocess.run(
            [VENV / "bin" / "supervisord", "-c", self._configuration],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failure(f"supervisord does not start: {(done.stderr or done.stdout).strip()[-300:]}")
        deadline = time.monotonic() + 15
        while not self.running():
            if time.monotonic() > deadline:
                log = self.profile.logs / "supervisord.log"
                raise Failure(f"supervisord does not answer; {log} says why.")
            time.sleep(0.1)


def _quoted(value: str) -> str:
    """A value in supervisord's shell-like syntax."""
    if "\n" in value:
        raise ValueError("supervisord's configuration cannot hold a line break")
    inner = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escaped(inner)}"'


def _environment_value(value: str) -> str:
    """A variable's value, in a syntax that has quotes but no escapes, and comments even inside quotes."""
    quote = "'" if '"' in value else '"'
    if quote in value or "\n" in value or re.search(r"\s[;#]", value):
        raise ValueError(f"supervisord's configuration cannot hold the value {value!r}")
    return f"{quote}{_escaped(value)}{quote}"


def _escaped(value: str) -> str:
    """`%` starts an expansion in supervisord's configuration."""
    return value.replace("%", "%%")
