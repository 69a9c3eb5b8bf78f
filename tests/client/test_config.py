"""Every flag that cannot work is one clear line, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_delta_inference.client import SimClientConfig
from async_delta_inference.client.cli import main
from async_delta_inference.errors import ConfigError, InvalidMessageError

GOOD = {"env": None, "policy_type": "act", "pretrained_name_or_path": "p", "actions_per_chunk": 50}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"policy_type": ""}, "policy_type"),
        ({"pretrained_name_or_path": ""}, "pretrained_name_or_path"),
        ({"actions_per_chunk": 0}, "actions_per_chunk"),
        ({"n_episodes": 0}, "n_episodes"),
        ({"n_videos": -1}, "n_videos"),
        ({"chunk_size_threshold": 1.5}, "chunk_size_threshold"),
        ({"fps": 0}, "fps"),
        ({"must_go": "sometimes"}, "always, queue_empty"),
        ({"clock": "sundial"}, "realtime, simulated"),
        ({"on_starvation": "eat"}, "wait, hold"),
        ({"render": "never"}, "on_demand, always"),
        ({"aggregate_fn_name": "median"}, "weighted_average"),
        ({"transport": "pigeon"}, "grpc, shm"),
        ({"server_address": "pigeon://loft"}, "grpc, shm"),
        ({"server_address": ""}, "server_address"),
        ({"inference_delay": "3"}, "--clock=simulated"),
        ({"clock": "simulated", "inference_delay": "-3"}, "inference_delay"),
        ({"clock": "simulated", "inference_delay": "soon"}, "inference_delay"),
        ({"clock": "simulated", "inference_delay_s": -0.1}, "inference_delay_s"),
        ({"clock": "simulated", "inference_delay": "3", "inference_delay_s": 0.1}, "not both"),
        ({"clock": "simulated", "one_request_in_flight": False}, "one_request_in_flight"),
        ({"clock": "simulated", "must_go": "queue_empty"}, "--clock=realtime"),
        ({"inference_timeout_s": 0}, "inference_timeout_s"),
    ],
)
def test_flag_that_cannot_work_is_refused(flags: dict, named: str) -> None:
    with pytest.raises((ConfigError, InvalidMessageError), match=named):
        SimClientConfig(**GOOD | flags)


def test_simulated_clock_measures_its_delay_by_default() -> None:
    assert SimClientConfig(**GOOD, clock="simulated").inference_delay == "auto"


@pytest.mark.parametrize(
    ("transport", "address", "uri"),
    [
        ("grpc", None, None),
        (None, None, None),
        (None, "127.0.0.1:8080", "grpc://127.0.0.1:8080"),
        (None, "shm://name", "shm://name"),
        ("grpc", "127.0.0.1:8080", "grpc://127.0.0.1:8080"),
        ("shm", "name", "shm://name"),
        ("grpc", "grpc://host:1", "grpc://host:1"),
    ],
)
def test_address_and_transport_make_the_uri(transport: str | None, address: str | None, uri: str | None) -> None:
    config = SimClientConfig(**GOOD, transport=transport, server_address=address)
    assert config.uri == uri
    assert config.transport is not None
    if uri is not None:
        assert uri.startswith(config.transport)


def test_server_of_its_own_is_reached_through_shared_memory() -> None:
    assert SimClientConfig(**GOOD).transport == "shm"


def test_transport_that_cannot_reach_the_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot reach"):
        SimClientConfig(**GOOD, transport="grpc", server_address="shm://name")


COMMAND = ["--env.type=pusht", "--policy_type=act", "--pretrained_name_or_path=./nothing", "--actions_per_chunk=5"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "env"),
        (["--env.type=pusht"], "policy_type"),
        ([*COMMAND, "--nonsense=1"], "nonsense"),
        ([*COMMAND, "--n_episodes=many"], "many"),
        (["--env.type=moon", *COMMAND[1:]], "moon"),
        ([*COMMAND, "--transport=pigeon"], "grpc, shm"),
        ([*COMMAND, "--clock=simulated", "--inference_delay=-2"], "inference_delay"),
        ([*COMMAND, "--clock=simulated", "--inference_delay_trace=nothing.json"], "inference_delay_trace"),
        (COMMAND, "no such folder"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert named in error
    assert "Traceback" not in error


def test_delay_on_the_command_line_is_a_number_or_auto() -> None:
    from async_delta_inference.client.cli import _parse

    arguments = [*COMMAND, "--clock=simulated"]
    assert _parse([*arguments, "--inference_delay=3"]).inference_delay == "3"
    assert _parse([*arguments, "--inference_delay=auto"]).inference_delay == "auto"
    assert _parse([*arguments, "--inference_delay_s=0.2"]).inference_delay_s == 0.2


def test_help_tells_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in SimClientConfig.__dataclass_fields__:
        assert f"--{name}" in text
    assert "seconds for the server to be reached" in text.lower()
