"""Postgres: its own server, its own data folder, one role and one database."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from settings import Failure, Profile
from supervision import Program
from tools import ensure_postgres

# The functions keep one connection each, and a burst starts many of them.
MAX_CONNECTIONS = 400


def program(profile: Profile) -> Program:
    """The supervised server; the data folder is made here at its first use."""
    programs = ensure_postgres()
    data = _cluster(profile, programs)
    settings = {
        "port": profile.port("postgres"),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": MAX_CONNECTIONS,
        "shared_buffers": "128MB",
    }
    if profile.name == "test":
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [*_as_owner(data), str(programs / "postgres"), "-D", str(data), *options]
    # SIGINT is Postgres's fast shutdown: it does not wait for clients to leave.
    return Program("postgres", command, folder=Path("/"), stop_signal="INT", stop_seconds=30, priority=10)


def ensure_database(profile: Profile) -> None:
    """The role and the database `app`; tests make databases of their own, so it may too."""
    password = profile.secret("postgres")
    if _psql(profile, "SELECT 1 FROM pg_roles WHERE rolname = 'app'") != "1":
        _psql(profile, f"CREATE ROLE app LOGIN CREATEDB PASSWORD '{password}'")
    if _psql(profile, "SELECT 1 FROM pg_database WHERE datname = 'app'") != "1":
        _psql(profile, "CREATE DATABASE app OWNER app")


def ready(profile: Profile) -> bool:
    """Whether the server takes connections."""
    command = [ensure_postgres() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(profile.port("postgres"))]
    return subprocess.run(command, check=False).returncode == 0


def _psql(profile: Profile, statement: str) -> str:
    environment = {**os.environ, "PGPASSWORD": profile.secret("postgres")}
    done = subprocess.run(
        [
            ensure_postgres() / "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(profile.port("postgres")),
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-XAtqc",
            statement,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failure(f"Postgres refuses: {done.stderr.strip()}; `make reset` starts with empty data.")
    return done.stdout.strip()


def _cluster(profile: Profile, programs: Path) -> Path:
    """The data folder, made by `initdb`, owned by a user that may run Postgres."""
    data = profile.data / "postgres"
    if (data / "PG_VERSION").exists():
        version = (data / "PG_VERSION").read_text().strip()
        if version != _version(programs):
            raise Failure(
                f"The data in {data} is of Postgres {version}, the server is {_version(programs)}; "
                "`make reset` starts with empty data."
            )
        return data
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    password_file = data.parent / "postgres-password"
    password_file.write_text(profile.secret("postgres"))
    if os.geteuid() == 0:
        owner = _server_user()
        os.chown(data, owner.pw_uid, owner.pw_gid)
        os.chown(password_file, owner.pw_uid, owner.pw_gid)
    done = subprocess.run(
        [
            *_as_owner(data),
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
        ],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    password_file.unlink()
    if done.returncode:
        raise Failure(f"Postgres's data folder cannot be made: {done.stderr.strip()[-300:]}")
    return data


def _version(programs: Path) -> str:
    printed = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return printed.split()[2].split(".")[0]


def _as_owner(data: Path) -> list[str]:
    """Postgres refuses to run as root: become its own user, and nothing else's.

    A clone may lie in a folder that only root may enter (``/root``, a temporary
    folder). Then the server keeps the one capability that walks through.
    """
    if os.geteuid() != 0:
        return []
    owner = _server_user()
    become = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    reachable = all(folder.stat().st_mode & 0o001 for folder in data.parents)
    if not reachable:
        become += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return become


def _server_user() -> pwd.struct_passwd:
    """Debian's `postgres`, or `nobody` where the server came another way."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Failure("Postgres must not run as root and there is no user `postgres`; run `useradd -r postgres`.")
