"""Every flag that cannot work is one clear line, exit code 2."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from async_delta_inference.client import SimClientConfig
from async_delta_inference.client.cli import main
from async_delta_inference.errors import ConfigError, MissingExtraError

GOOD = {"env": None, "policy_type": "act", "pretrained_name_or_path": "p", "actions_per_chunk": 50}
DISTRIBUTION = Path(__file__).parents[1] / "support" / "coo_distribution"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"pretrained_name_or_path": ""}, "--policy_type needs --pretrained_name_or_path"),
        ({"actions_per_chunk": 0}, "actions_per_chunk"),
        ({"n_episodes": 0}, "n_episodes"),
        ({"n_videos": -1}, "n_videos"),
        ({"chunk_size_threshold": 1.5}, "chunk_size_threshold"),
        ({"fps": 0}, "--fps"),
        ({"fps": float("inf")}, "--fps must be a finite number"),
        ({"fps": 1e-300}, "--fps"),
        ({"clock": "simulated", "inference_delay_s": float("inf")}, "--inference_delay_s must be a finite number"),
        ({"chunk_size_threshold": float("nan")}, "--chunk_size_threshold"),
        ({"must_go": "sometimes"}, "always, queue_empty"),
        ({"clock": "sundial"}, "realtime, simulated"),
        ({"on_starvation": "eat"}, "wait, hold, skip"),
        ({"render": "never"}, "on_demand, always"),
        ({"aggregate_fn_name": "median"}, "weighted_average"),
        ({"transport": "pigeon"}, r"unknown --transport=pigeon; known are: .*grpc.*shm"),
        ({"server_address": "pigeon://loft"}, r"unknown --transport=pigeon; known are: .*grpc.*shm"),
        ({"server_address": ""}, "server_address"),
        ({"inference_delay": "3"}, "--clock=simulated"),
        ({"clock": "simulated", "inference_delay": "-3"}, "inference_delay"),
        ({"clock": "simulated", "inference_delay": "soon"}, "inference_delay"),
        ({"clock": "simulated", "inference_delay_s": -0.1}, "inference_delay_s"),
        ({"clock": "simulated", "inference_delay": "3", "inference_delay_s": 0.1}, "not both"),
        ({"clock": "simulated", "one_request_in_flight": False}, "one_request_in_flight"),
        ({"clock": "simulated", "must_go": "queue_empty"}, "--clock=realtime"),
        ({"inference_timeout_s": 0}, "--inference_timeout_s must be positive"),
        ({"connect_timeout_s": float("nan")}, "--connect_timeout_s"),
        ({"setup_timeout_s": 1e300}, "--setup_timeout_s must be positive and at most"),
        ({"seed": None}, "--seed must have a value"),
        ({"n_episodes": None}, "--n_episodes must have a value"),
        ({"seed": -1}, "--seed must be 0 or more"),
        ({"seed": 2**32 - 5}, "--seed must be 0 or more, and below"),
        ({"env": SimpleNamespace(fps=0)}, "--env.fps must be a positive number, got 0"),
        ({"env": SimpleNamespace(fps=None)}, "--env.fps must be a positive number"),
        ({"env": SimpleNamespace(fps=float("nan"))}, "--env.fps must be a positive number"),
        ({"env": SimpleNamespace(fps=20, episode_length=-3)}, "--env.episode_length must be a positive number, got -3"),
        ({"env": SimpleNamespace(fps=20, observation_height=0)}, "--env.observation_height must be"),
        ({"output_dir": "~nobody_of_that_name/x"}, "--output_dir"),
        ({"n_envs": 0}, "--n_envs must be a number of simulators, 1 or more, or auto, got 0"),
        ({"n_envs": 2, "trace": "trace.json"}, "--trace follows one simulator"),
        ({"runner": "slurm"}, "unknown --runner=slurm; known are: processes, ray"),
        ({"ray_address": "auto"}, "--ray_address is for --runner=ray: add that"),
        ({"runner": "ray", "ray_address": "ray://head:10001"}, "Ray's client protocol is not spoken"),
        ({"runner": "ray", "num_servers": 0}, "--num_servers must be a number of servers, 1 or more, or auto, got 0"),
        ({"n_envs": 2, "num_servers": "two"}, "--num_servers must be a number of servers"),
        ({"num_servers": "auto"}, "--num_servers is for the servers of several simulators: add --n_envs"),
        (
            {"n_envs": 2, "num_servers": "auto", "policy_device": "cuda:1"},
            "--policy_device=cuda:1 names one device, and --num_servers=auto gives each server its own GPU",
        ),
        (
            {"runner": "ray", "num_servers": 2, "server_address": "h:1"},
            "--num_servers is for servers of this run's own",
        ),
        ({"runner": "ray", "policy_device": "cuda:1"}, "Ray gives each server its GPU, so say cuda"),
        ({"runner": "ray", "trace": "trace.json"}, "leave --runner=ray out"),
        ({"max_batch": 2, "server_address": "shm://x"}, "--max_batch is for a server of this run's own"),
        ({"resume": True}, "--resume=true needs --output_dir"),
        ({"resume": True, "output_dir": "x", "overwrite": True}, "--resume keeps what --overwrite=true replaces"),
        ({"reconnect_timeout_s": -1}, "--reconnect_timeout_s must be 0 or more"),
    ],
)
def test_flag_that_cannot_work_is_refused(flags: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SimClientConfig(**GOOD | flags)


def test_number_of_servers_may_be_left_to_the_machines() -> None:
    for runner in ("processes", "ray"):
        wanted = [
            SimClientConfig(**GOOD, runner=runner, n_envs=2, num_servers=n).servers_wanted for n in (None, "auto", 3)
        ]
        assert wanted == [None, None, 3]


def test_home_is_home_in_python_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = SimClientConfig(**GOOD, output_dir="~/results", trace="~/trace.json", seed=0)
    assert (config.output_dir, config.trace) == (tmp_path / "results", tmp_path / "trace.json")


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


def test_transport_of_an_installed_distribution_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a server, and with one of its own."""
    monkeypatch.syspath_prepend(DISTRIBUTION)
    assert SimClientConfig(**GOOD, transport="coo", server_address="loft").uri == "coo://loft"
    assert SimClientConfig(**GOOD, server_address="coo://loft").transport == "coo"
    own = SimClientConfig(**GOOD, transport="coo")
    assert (own.transport, own.uri) == ("coo", None)


@pytest.mark.parametrize(
    ("address", "shared"),
    [
        (None, True),
        ("127.0.0.1:8080", True),
        ("localhost:8080", True),
        ("[::1]:8080", True),
        ("unix:/run/server.sock", True),
        ("shm://name", True),
        ("gpu.lab:8080", False),
        ("10.0.0.3:8080", False),
    ],
)
def test_server_of_this_machine_sees_its_files(address: str | None, shared: bool) -> None:
    assert SimClientConfig(**GOOD, server_address=address).shares_files is shared


def test_program_may_give_text_and_numbers(tmp_path: Path) -> None:
    config = SimClientConfig(
        **GOOD, clock="simulated", inference_delay=3, output_dir=str(tmp_path), trace=f"{tmp_path}/trace.json"
    )
    assert (config.inference_delay, config.output_dir, config.trace) == ("3", tmp_path, tmp_path / "trace.json")


def test_transport_that_cannot_reach_the_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot reach"):
        SimClientConfig(**GOOD, transport="grpc", server_address="shm://name")


COMMAND = ["--env.type=pusht", "--policy_type=act", "--pretrained_name_or_path=./nothing", "--actions_per_chunk=5"]
FITTING = [*COMMAND, "--pretrained_name_or_path=checkpoint"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "env"),
        (["--env.type=pusht"], "name what to evaluate: --pretrained_name_or_path"),
        (["--env.type=pusht", "--actions_per_chunk=5", "--policy_type=act"], "--policy_type needs"),
        (["--env.type=pusht", "--pretrained_name_or_path=p"], "no such folder"),
        ([*COMMAND, "--noise=pink"], "--noise must be request or stream"),
        ([*COMMAND, "--policy_host=elsewhere"], "known are: lerobot, policy_server"),
        ([*COMMAND, "--nonsense=1"], "nonsense"),
        ([*COMMAND, "--n_episodes=many"], "many"),
        (["--env.type=moon", *COMMAND[1:]], "moon"),
        ([*COMMAND, "--transport=pigeon"], "unknown --transport=pigeon"),
        ([*COMMAND, "--clock=simulated", "--inference_delay=-2"], "inference_delay"),
        ([*COMMAND, "--clock=simulated", "--inference_delay_trace=nothing.json"], "inference_delay_trace"),
        (COMMAND, "no such folder"),
        ([*COMMAND, "--config_path=nowhere.yaml"], "nowhere.yaml"),
        ([*COMMAND, "--seed=abc"], "--seed"),
        ([*FITTING, "--output_dir=file"], "--output_dir=file"),
        ([*FITTING, "--output_dir=file/below"], "--output_dir=file/below"),
        ([*FITTING, "--trace=."], "--trace=."),
        ([*FITTING, "--client_device=zebra"], "--client_device=zebra"),
        ([*FITTING, "--server_address=127.0.0.1"], "write host:port"),
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
    (tmp_path / "file").touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert named in error
    assert "Traceback" not in error


def test_missing_lerobot_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from async_delta_inference.client.cli import parse_evaluation

    monkeypatch.setitem(sys.modules, "lerobot.envs.configs", None)
    with pytest.raises(MissingExtraError, match="async-delta-eval needs the extra 'lerobot'"):
        parse_evaluation(COMMAND)


def test_delay_on_the_command_line_is_a_number_or_auto() -> None:
    from async_delta_inference.client.cli import parse_evaluation

    arguments = [*COMMAND, "--clock=simulated"]
    assert parse_evaluation([*arguments, "--inference_delay=3"]).inference_delay == "3"
    assert parse_evaluation([*arguments, "--inference_delay=auto"]).inference_delay == "auto"
    assert parse_evaluation([*arguments, "--inference_delay_s=0.2"]).inference_delay_s == 0.2


def test_help_tells_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it stands, and beside whatever would be a mistake."""
    assert main(["--inference_delay=2", "--help", "--nonsense"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in SimClientConfig.__dataclass_fields__:
        assert f"--{name}" in text
    assert "seconds for the server to be reached" in text.lower()
    # draccus takes a line of a docstring for a field's definition if it looks like one, and so loses that field's help.
    assert set(re.findall(r" --(\w[\w.]+) [a-zA-Z[][\w\]]* (?=--[a-z])", text)) <= {"help"}


def test_no_flag_has_two_meanings() -> None:
    """A field that is declared again means one thing on the command line and another in Python."""
    declared = [name for kind in SimClientConfig.__mro__ for name in getattr(kind, "__annotations__", {})]
    assert sorted(declared) == sorted(set(declared))


def test_help_knows_the_environments_that_lerobot_registers(capsys: pytest.CaptureFixture[str]) -> None:
    from lerobot.envs.configs import EnvConfig

    assert main(["-h"]) == 0
    listed = capsys.readouterr().out.split("Values of --env.type: ")[1]
    registered = EnvConfig.get_known_choices()
    own = {name for name, config in registered.items() if config.__module__ == EnvConfig.__module__}
    assert own <= set(listed.replace(",", " ").split())
    assert "libero" in own


def test_help_of_one_environment_tells_its_flags_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--env.type=pusht", "--help"], ["--help", "--env.type", "pusht"]):
        assert main(flags) == 0
        text = capsys.readouterr().out
        assert "--env.observation_height" in text
        assert "--env.control_mode" not in text  # LIBERO's
        assert "--n_episodes" not in text
    assert main(["--env.type=puhst", "--help"]) == 2
    assert "there is no such environment" in capsys.readouterr().err


def test_help_loads_neither_lerobot_nor_torch() -> None:
    program = (
        "import sys; from async_delta_inference.client.cli import main; main(['--help']); "
        "print({'lerobot', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "Values of --env.type: aloha" in done.stdout
    assert done.stdout.endswith("set()\n")
