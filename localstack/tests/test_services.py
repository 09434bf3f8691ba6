"""A service that runs is as new as the checkout."""

import shutil

import pytest

import containers
import services
import settings
from settings import HERE, Profile

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


def test_in_containers_a_key_goes_to_its_provider_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "LOCAL", tmp_path)
    monkeypatch.setattr(services, "dotenv", lambda: {"OPENAI_API_KEY": "sk-real"})
    values = containers._parameters()
    assert values["OpenAiApiKey"] == "sk-real"
    assert "OpenAiBaseUrl" not in values
    assert values["AnthropicBaseUrl"] == values["GoogleBaseUrl"] == "http://llm:4010"


def test_what_builds_a_deploy_is_what_the_stack_builds_with():
    def pinned(name):
        return {line for line in (HERE / name).read_text().splitlines() if "==" in line}

    assert pinned("requirements-build.txt") < pinned("requirements.txt")
