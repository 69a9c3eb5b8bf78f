"""`SimClient` from start to stop: what it opens it closes, whatever happened in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_run import Run
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference import stages
from async_delta_inference.client import EpisodeSpec, SimClient, SimClientConfig
from async_delta_inference.errors import ConfigError, EpisodeError, FeatureMismatchError, SetupRefusedError
from async_delta_inference.stage_trace import read_marks
from async_delta_inference.transport import Observation, PolicyNeeds, serve
from async_delta_inference.transport.testing import ScriptedPolicy, ScriptedTransport


def test_starting_twice_is_refused(run: Run) -> None:
    client = run.client()
    client.start()
    with pytest.raises(ConfigError, match="starts once"):
        client.start()
    client.control_loop()
    client.stop()
    with pytest.raises(ConfigError, match="starts once"):
        client.start()


def test_control_loop_before_start_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="start"):
        run.client().control_loop()


def test_neither_server_nor_policy_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    config = SimClientConfig(env=None, actions_per_chunk=8, output_dir=tmp_path / "out")
    client = SimClient(config, environments=[StubEnvironment()])
    with pytest.raises(ConfigError, match=r"--pretrained_name_or_path.*--server_address"):
        client.start()
    assert not (tmp_path / "out").exists()


def test_stop_closes_what_start_opened(run: Run) -> None:
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=1)]
    client = run.client(trace=run.folder / "trace.json")
    client.start()
    assert stages.recorder is not None
    client.stop()
    client.stop()
    assert not client.running
    assert run.transport.closed
    assert all(environment.closed for environment in run.environments)
    assert stages.recorder is None
    assert read_marks(run.folder / "trace.json") == []


def test_run_closes_what_it_opened(run: Run) -> None:
    client = run.client(trace=run.folder / "trace.json", chunk_size_threshold=0.0)
    client.run()
    assert run.transport.closed
    assert run.environments[0].closed
    assert stages.recorder is None
    merged = [timestep for stage, timestep, _ in read_marks(run.folder / "trace.json") if stage == stages.MERGE]
    assert merged == [0, 10, 20]


def test_simulator_is_closed_before_the_next_one_is_needed(run: Run) -> None:
    """LIBERO's take 3 GB each."""
    first, second = StubEnvironment(task_id=0), StubEnvironment(task_id=1)
    closed: list[bool] = []

    class Watching(StubEnvironment):
        def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
            closed.append(first.closed)
            super().reset(spec, render=render)

    second = Watching(task_id=1)
    run.environments = [first, second]
    run(n_episodes=2)
    assert closed == [True, True]
    assert second.closed


class Leaking(StubEnvironment):
    """Fails to close."""

    def close(self) -> None:
        super().close()
        raise RuntimeError("the simulator crashed")


def test_simulator_that_fails_to_close_keeps_nothing_else_open(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.environments = [Leaking(task_id=0), Leaking(task_id=1)]
    client = run.client(trace=run.folder / "trace.json")
    client.start()
    client.stop()
    assert caplog.text.count("crashed") == 2
    assert run.transport.closed
    assert all(environment.closed for environment in run.environments)
    assert stages.recorder is None


def test_start_that_fails_leaves_nothing_open(run: Run) -> None:
    policy = ScriptedPolicy()
    policy.fail_open("no such checkpoint")
    run.policy = policy
    client = run.client(trace=run.folder / "trace.json")
    with pytest.raises(SetupRefusedError, match="no such checkpoint"):
        client.start()
    assert run.transport.closed
    assert run.environments[0].closed
    assert stages.recorder is None


def test_environments_that_observe_differently_are_refused(run: Run) -> None:
    other = StubEnvironment(task_id=1)
    other.action_dim = 3
    run.environments = [StubEnvironment(), other]
    with pytest.raises(FeatureMismatchError, match="stub/0 and stub/1"):
        run()
    assert run.transport.closed


def test_simulator_that_fails_ends_the_run_and_keeps_what_was_done(run: Run) -> None:
    class Breaks(StubEnvironment):
        def step(self, action: Any, *, render: bool = True) -> Any:
            if len(self.seeds) == 2:
                raise EpisodeError("the simulator broke")
            return super().step(action, render=render)

    run.environments = [Breaks(outcomes={9: SOLVED})]
    client = run.client(n_episodes=2)
    with pytest.raises(EpisodeError, match="broke"):
        client.run()
    assert [episode.success for episode in client.result.episodes] == [True]
    assert written(client)["overall"]["n_episodes"] == 1
    assert run.transport.closed


def test_server_that_comes_back_within_its_window_may_take_longer_than_an_inference(run: Run) -> None:
    client = run.client(inference_timeout_s=0.05, reconnect_timeout_s=30.0)
    receive, looks = run.transport.receive_actions, []
    run.transport.away = True

    def watched(timeout_s: float) -> Any:
        looks.append(timeout_s)
        if len(looks) == 5:
            run.transport.come_back()
        return receive(min(timeout_s, 0.05))  # each of them as long as an answer may take

    run.transport.receive_actions = watched  # type: ignore[method-assign]
    (episode,) = client.run().episodes
    assert episode.length == 30


# What was evaluated.


def written(client: SimClient) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((client.output_dir / "eval_info.json").read_text())
    return info


def eight_zeros(observation: Observation) -> list[list[float]]:
    return [[0.0, 0.0]] * 8


def test_served_function_is_evaluated_without_a_checkpoint(tmp_path: Path) -> None:
    with serve(eight_zeros, "inproc://facade") as server:
        config = SimClientConfig(
            env=None,
            actions_per_chunk=8,
            server_address=server.uris[0],
            n_episodes=2,
            output_dir=tmp_path,
            progress=False,
        )
        environment = StubEnvironment()
        client = SimClient(config, environments=[environment])
        client.run()
    assert [np.array(actions).tolist() for actions in environment.actions] == [[[0.0, 0.0]] * 30] * 2
    assert client.result.policy.endswith("eight_zeros")
    assert written(client)["overall"]["async"]["policy"] == client.result.policy


def test_server_that_says_nothing_of_itself_is_called_what_was_asked_of_it(run: Run) -> None:
    policy = ScriptedPolicy()
    policy.ask_for(PolicyNeeds(""))
    run.policy = policy
    result = run(policy_type="act", pretrained_name_or_path="some/checkpoint")
    assert result.policy == "act from some/checkpoint"


def test_flags_of_the_policy_reach_the_server(run: Run) -> None:
    policy = ScriptedPolicy()
    run.policy = policy
    run(policy_type="act", pretrained_name_or_path="some/checkpoint", policy_device="cuda:3", actions_per_chunk=7)
    (session,) = policy.sessions()
    spec = session.spec
    assert (spec.policy_type, spec.pretrained_name_or_path, spec.device) == ("act", "some/checkpoint", "cuda:3")
    assert (spec.actions_per_chunk, spec.action_dim) == (7, 2)
    assert spec.features == run.environments[0].features
    assert session.closed == 1


def test_path_of_a_checkpoint_is_absolute_for_a_server_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"type": "act", "input_features": {"observation.images.camera": {"shape": [3, 4, 4]}}}'
    )
    monkeypatch.chdir(tmp_path)
    policy = ScriptedPolicy()
    with serve(policy, "inproc://absolute") as server:
        config = SimClientConfig(
            env=None,
            policy_type="act",
            pretrained_name_or_path="model",
            actions_per_chunk=8,
            server_address=server.uris[0],
            output_dir=tmp_path / "out",
        )
        client = SimClient(config, environments=[StubEnvironment()])
        client.start()
        client.stop()
    (session,) = policy.sessions()
    assert session.spec.pretrained_name_or_path == str(tmp_path / "model")


def test_transport_of_the_users_own_is_connected_and_closed(tmp_path: Path) -> None:
    transport = ScriptedTransport(eight_zeros)  # type: ignore[arg-type]
    config = SimClientConfig(env=None, actions_per_chunk=8, output_dir=tmp_path, progress=False)
    client = SimClient(config, environments=[StubEnvironment()], transport=transport)
    assert transport.spec is None
    client.start()
    assert transport.spec is not None
    client.stop()
    assert transport.closed
