"""The flags of async-delta-serve."""

from __future__ import annotations

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
        ({"inference_latency": -1.0}, "negative"),
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


def test_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--transport=pigeon"]) == 2
    assert capsys.readouterr().err.strip().splitlines() == ["error: unknown --transport=pigeon; known are: grpc, shm"]
