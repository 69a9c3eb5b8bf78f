"""LeRobot's PolicyServer as it is, for comparisons."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from async_delta_inference import stages
from async_delta_inference.errors import ConfigError
from async_delta_inference.server_adapter.upstream import UpstreamServer, probe_stages


@pytest.fixture
def servicer() -> object:
    """Nobody calls it: these tests are about the address."""
    from lerobot.transport.services_pb2_grpc import AsyncInferenceServicer

    return AsyncInferenceServicer()


def test_port_that_is_taken_is_refused(servicer: object) -> None:
    with UpstreamServer("127.0.0.1:0", servicer) as first, pytest.raises(ConfigError, match="taken"):
        UpstreamServer(first.uri.removeprefix("grpc://"), servicer).start()


@pytest.mark.parametrize("address", ["nope", "127.0.0.1", "127.0.0.1:99999", "host:port"])
def test_what_is_no_address_is_refused(servicer: object, address: str) -> None:
    """gRPC would serve on another port than the one asked for."""
    with pytest.raises(ConfigError, match="write host:port"):
        UpstreamServer(address, servicer)


def test_any_port_is_told_by_the_uri(servicer: object) -> None:
    server = UpstreamServer("127.0.0.1:0", servicer)
    server.start()
    assert server.uri.startswith("grpc://127.0.0.1:")
    assert not server.uri.endswith(":0")
    server.stop()
    server.stop()


def test_unix_socket(servicer: object, tmp_path: Path) -> None:
    with UpstreamServer(f"unix:{tmp_path}/socket", servicer) as server:
        assert server.uri == f"grpc://unix:{tmp_path}/socket"


def test_it_makes_a_policy_server_of_its_own() -> None:
    server = UpstreamServer("127.0.0.1:0", obs_queue_timeout_s=0.3)
    assert type(server.policy_server).__name__ == "PolicyServer"
    assert server.policy_server.config.obs_queue_timeout == 0.3
    assert server.policy_server.config.inference_latency == 0.0


def test_stages_are_marked_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for PolicyServer calls its parts in the order in which the real one does."""

    class InOrder:
        def preprocessor(self, batch: Any) -> Any:
            return batch

        def _enqueue_observation(self, obs: Any) -> bool:
            return True

        def _get_action_chunk(self, observation: Any) -> Any:
            return observation

        def _predict_action_chunk(self, observation_t: Any) -> Any:
            return self._get_action_chunk(self.preprocessor(observation_t))

    server: Any = InOrder()
    probe_stages(server)
    observation = SimpleNamespace(get_timestep=lambda: 7)
    assert server._predict_action_chunk(observation) is observation  # nothing records
    monkeypatch.setattr(stages, "recorder", stages.StageRecorder())
    server._enqueue_observation(observation)
    assert server._predict_action_chunk(observation) is observation
    marks = [(stage, timestep) for stage, timestep, _ in stages.take()]
    wanted = (stages.TRANSFER, stages.WAIT, stages.PREPARE, stages.PREPROCESS, stages.FORWARD, stages.POSTPROCESS)
    assert marks == [(stage, 7) for stage in wanted]
