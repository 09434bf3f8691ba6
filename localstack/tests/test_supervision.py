"""supervisord reads back exactly the command and environment that were meant."""

import configparser
import shlex
import subprocess

import pytest
from supervisor.datatypes import dict_of_key_value_pairs

from supervision import Program


def section(program, tmp_path):
    parser = configparser.RawConfigParser(inline_comment_prefixes=())
    parser.read_string(program.section(tmp_path))
    return parser[f"program:{program.name}"]


def test_values_survive_the_configuration(tmp_path):
    values = {"PLAIN": "a", "LIST": "http://a,http://b", "PERCENT": "50%", "QUOTE": 'say "hi" \\ bye', "SEMI": "a;b"}
    read = section(Program("p", ["true"], values), tmp_path)["environment"]
    assert dict_of_key_value_pairs(read.replace("%%", "%")) == values


@pytest.mark.parametrize("value", ["both ' and \"", "a ; comment", "two\nlines"])
def test_values_that_would_be_misread_are_refused(tmp_path, value):
    with pytest.raises(ValueError):
        Program("p", ["true"], {"NAME": value}).section(tmp_path)


def test_command_survives_the_configuration(tmp_path):
    command = ["/bin/echo", "two words", 'a "quote"', "100%"]
    read = section(Program("p", command), tmp_path)["command"]
    done = subprocess.run(shlex.split(read.replace("%%", "%")), check=True, capture_output=True)
    assert (done.stdout, (tmp_path / "p.log").read_text()) == (b"", 'two words a "quote" 100%\n')
