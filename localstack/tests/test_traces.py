"""Traces are kept for as long as a person can look at them."""

import os

import pytest

import services
import settings
from settings import Profile


@pytest.mark.parametrize(("size", "kept"), [(services.MOST_TRACES, True), (services.MOST_TRACES + 1, False)])
def test_too_many_traces_are_forgotten(tmp_path, monkeypatch, size, kept):
    monkeypatch.setattr(settings, "LOCAL", tmp_path)
    profile = Profile("some", stack_name="some", port_offset=0)
    profile.data.mkdir(parents=True)
    names = [f"traces.sqlite3{ending}" for ending in ("", "-wal", "-shm")]
    for name in [*names, "other"]:
        (profile.data / name).touch()
    os.truncate(profile.data / names[0], size)

    services.forget_traces(profile)

    assert sorted(os.listdir(profile.data)) == sorted(["other", *names] if kept else ["other"])


def test_without_traces_there_is_nothing_to_forget(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "LOCAL", tmp_path)
    services.forget_traces(Profile("none", stack_name="none", port_offset=0))
