"""A service that runs is as new as the checkout."""

import shutil

import pytest

import services
import settings
from settings import Profile

READ = {
    "aws": "servers/aws/queues.py",
    "clickhouse": "servers/clickhouse_http.py",
    "llm": "servers/models.json",
    "stripe": "servers/stripe/webhooks.py",
}


@pytest.mark.parametrize(("name", "path"), READ.items())
def test_other_code_makes_another_program(tmp_path, monkeypatch, name, path):
    folder = tmp_path / "localstack"
    shutil.copytree(services.HERE, folder, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    monkeypatch.setattr(settings, "LOCAL", tmp_path)
    monkeypatch.setattr(services, "HERE", folder)
    profile = Profile("some", stack_name="some", port_offset=0)

    def programs():
        return {program.name: program for program in services.programs(profile)}

    before = programs()
    assert programs() == before
    with (folder / path).open("a") as source:
        source.write("\n")
    after = programs()
    assert {name for name in before if before[name] != after[name]} == {name}
