import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from emojax import distributed
from emojax.errors import UserError


@pytest.fixture
def calls(monkeypatch):
    """What JAX is told, instead of waiting for other processes; GKE's variables are not there."""
    for name in ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append((a, k)))
    return told


def test_one_process_starts_nothing(calls):
    assert distributed.initialize() is False
    assert calls == []


def test_all_that_was_given_reaches_jax(calls):
    joined = distributed.initialize(
        coordinator="10.0.0.2:8476", processes=4, process=3, start_timeout=7, heartbeat_timeout=8
    )
    assert joined is True
    assert calls == [
        (
            ("10.0.0.2:8476", 4, 3),
            {"initialization_timeout": 7, "heartbeat_timeout_seconds": 8},
        )
    ]


def test_asked_leaves_it_to_jax_to_find_the_job(calls):
    assert distributed.initialize(asked=True) is True
    assert calls[0][0] == (None, None, None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "1"}, False),
    ],
)
def test_more_than_one_process_is_seen_in_the_environment(calls, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.initialize() is expected
    assert bool(calls) is expected


def test_a_job_that_was_joined_is_not_joined_again(calls, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert distributed.initialize(asked=True) is True
    assert calls == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coordinator": "h:1"}, "--processes and --process"),
        ({"processes": 2, "process": 0}, "--coordinator"),
        ({"coordinator": "h", "processes": 2, "process": 0}, "host:port"),
        ({"coordinator": "h:x", "processes": 2, "process": 0}, "host:port"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, "Process 2 of 2"),
        ({"coordinator": "h:1", "processes": 2, "process": -1}, "Process -1 of 2"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout"),
    ],
)
def test_half_a_configuration_is_refused(calls, values, message):
    with pytest.raises(UserError, match=message) as refused:
        distributed.initialize(**values)
    assert "\n" not in str(refused.value)
    assert calls == []


def test_a_job_that_is_not_there_is_named(calls, monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match="drop --distributed"):
        distributed.initialize(asked=True)


def test_two_processes_find_each_other_and_say_what_they_wait_for():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = pathlib.Path(__file__).with_name("one_process.py")
    command = [sys.executable, program, f"--coordinator=localhost:{port}", "--processes=2"]
    both = [
        subprocess.Popen(
            [*command, f"--process={i}", "--start_timeout=120"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for i in range(2)
    ]
    for i, process in enumerate(both):
        printed, told = process.communicate(timeout=180)
        assert process.returncode == 0, told
        assert printed == f"{i} 2 2\n"
        assert "Waiting up to 120 s" in told
