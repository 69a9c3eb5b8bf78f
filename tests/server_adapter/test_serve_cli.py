"""The flags of async-delta-serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from async_delta_inference.errors import ConfigError
from async_delta_inference.server_adapter import cli
from async_delta_inference.server_adapter.cli import ServeConfig, main


def test_default_addresses() -> None:
    assert ServeConfig().listen_on() == [("grpc", "127.0.0.1:8080")]
    assert ServeConfig(transport="grpc,shm").listen_on()[1][0] == "shm"


def test_addresses_fit_the_transports() -> None:
    config = ServeConfig(transport="grpc,shm", server_address="127.0.0.1:0,shm://name")
    assert config.listen_on() == [("grpc", "127.0.0.1:0"), ("shm", "name")]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"transport": "pigeon"}, "grpc, shm"),
        ({"transport": "grpc,shm", "server_address": "127.0.0.1:0"}, "2 transports"),
        ({"transport": "grpc", "server_address": "shm://name"}, "cannot serve"),
        ({"fps": 0}, "fps"),
        ({"inference_latency": -1.0}, "--inference_latency must not be negative"),
        ({"inference_latency": float("inf")}, "--inference_latency"),
        ({"obs_queue_timeout": float("nan")}, "--obs_queue_timeout"),
        ({"announce_fd": 10**6}, "--announce_fd=1000000 is not open"),
    ],
)
def test_flag_that_cannot_work_is_refused(flags: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServeConfig(**flags)


def test_interrupt_right_after_the_start_still_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        uri, stopped = "shm://name", False

        def start(self) -> None:
            raise KeyboardInterrupt

        def stop(self) -> None:
            self.stopped = True

    service = Interrupted()
    monkeypatch.setattr(cli, "_make_service", lambda *_: service)
    assert main(["--transport=shm"]) == 130
    assert service.stopped


@pytest.mark.parametrize(
    ("module", "transport", "named"),
    [
        ("draccus", "grpc", "extra 'lerobot'"),
        ("lerobot", "grpc", "extra 'lerobot'"),
        ("lerobot", "shm", "extra 'lerobot'"),
        ("torch", "shm", "extra 'lerobot'"),
        ("grpc", "grpc", "extra 'lerobot'"),
        ("grpc", "shm", "lerobot[async]"),  # LeRobot's own words
    ],
)
def test_missing_packages_name_the_extra(module: str, transport: str, named: str) -> None:
    """As in an environment with the light core, or with a part of the extra."""
    code = (
        f"import sys; sys.modules[{module!r}] = None; "
        f"from async_delta_inference.server_adapter.cli import main; sys.exit(main(['--transport={transport}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_trace_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([f"--trace={tmp_path}/file/trace.json"]) == 2
    assert "--trace=" in capsys.readouterr().err


def test_help_tells_every_flag_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ServeConfig.__dataclass_fields__:
        assert f"--{name}" in text
    assert "Seconds that gRPC's GetActions waits" in text


def test_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--transport=pigeon"]) == 2
    assert capsys.readouterr().err.strip().splitlines() == ["error: unknown --transport=pigeon; known are: grpc, shm"]
