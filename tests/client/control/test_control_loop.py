"""The control loop's rules, step by step, with a transport whose answers come when the test says.

The tests named ``test_unlike_upstream_...`` are about defects of RobotClient or PolicyServer that are not inherited;
each fails with upstream's behaviour.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_transport import ScriptedTransport, timestep_policy
from stub_environment import StubEnvironment

from async_delta_inference.client import SimClient, SimClientConfig, StepResult
from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.errors import ConfigError, PolicyError, TransportTimeout
from async_delta_inference.transport import ActionChunk, Observation


class Run:
    """One evaluation of stub environments over a scripted transport."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._monkeypatch, self._tmp_path = monkeypatch, tmp_path
        self.environments = [StubEnvironment()]
        self.transport = ScriptedTransport(timestep_policy(rows=10))

    def client(self, **flags: Any) -> SimClient:
        flags = {
            "n_episodes": 1,
            "actions_per_chunk": 50,
            "clock": "simulated",
            "inference_delay": "0",
            "reconnect_timeout_s": 0.0,
            "server_address": "grpc://nowhere:1",
            "pretrained_name_or_path": "some/checkpoint",
        } | flags
        if flags["clock"] == "realtime":
            flags["inference_delay"] = None
        config = SimClientConfig(
            env=None,
            policy_type="act",
            output_dir=self._tmp_path / "out",
            progress=False,
            **flags,
        )
        self._monkeypatch.setattr(
            "async_delta_inference.client.sim_client.open_transport", lambda uri, options: self.transport
        )
        return SimClient(config, environments=self.environments)

    def __call__(self, **flags: Any) -> EvaluationResult:
        return self.client(**flags).run()

    def episode(self, **flags: Any) -> EpisodeResult:
        return self(**flags).episodes[0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    return Run(monkeypatch, tmp_path)


def executed(episode: EpisodeResult) -> list[int]:
    """The timesteps that the executed actions were computed for."""
    return episode.actions[:, 0].astype(int).tolist()


def asked(run: Run) -> list[int]:
    return [observation.timestep for observation in run.transport.sent]


# Labels.


@pytest.mark.parametrize("flags", [{}, {"chunk_size_threshold": 0.0}, {"clock": "realtime"}, {"inference_delay": "3"}])
def test_unlike_upstream_no_action_of_a_chunk_is_lost(run: Run, flags: dict) -> None:
    episode = run.episode(**flags, aggregate_fn_name="latest_only")
    assert executed(episode) == list(range(30))


def test_observation_carries_the_timestep_of_the_action_it_is_for(run: Run) -> None:
    run(chunk_size_threshold=0.0)
    assert asked(run) == [0, 10, 20]
    assert [observation.state[0] for observation in run.transport.sent] == [0, 10, 20]


def test_unlike_upstream_timesteps_do_not_restart_with_an_episode(run: Run) -> None:
    run(n_episodes=3, chunk_size_threshold=0.0)
    assert asked(run) == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert [observation.episode for observation in run.transport.sent] == [0] * 3 + [1] * 3 + [2] * 3


def test_episodes_of_further_tasks_go_on_counting(run: Run) -> None:
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=1)]
    result = run(n_episodes=2, chunk_size_threshold=0.0)
    assert [o.episode for o in run.transport.sent] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [(e.task_id, e.episode, e.seed) for e in result.episodes] == [
        (0, 0, 1000),
        (0, 1, 1001),
        (1, 0, 1000),
        (1, 1, 1001),
    ]
    assert all(environment.closed for environment in run.environments)


# Asking.


@pytest.mark.parametrize(
    ("threshold", "asked_at"), [(0.0, [0, 10, 20]), (0.5, [0, 5, 10, 15, 20, 25]), (0.9, list(range(30)))]
)
def test_threshold_decides_when_to_ask(run: Run, threshold: float, asked_at: list[int]) -> None:
    run(chunk_size_threshold=threshold)
    assert asked(run) == asked_at


def test_unlike_upstream_one_request_is_in_flight(run: Run) -> None:
    run.transport = ScriptedTransport(timestep_policy(rows=10), polls=4)
    episode = run.episode(clock="realtime", chunk_size_threshold=0.5)
    answers = [chunk.requested_step for chunk in episode.chunks]
    assert asked(run)[: len(answers)] == answers
    assert len(asked(run)) <= len(answers) + 1
    assert executed(episode) == list(range(30))


def test_requests_every_step_as_upstream_when_asked_for(run: Run) -> None:
    run.transport = ScriptedTransport(timestep_policy(rows=10), polls=2)
    episode = run.episode(
        clock="realtime", chunk_size_threshold=0.5, one_request_in_flight=False, aggregate_fn_name="latest_only"
    )
    assert len(asked(run)) > len(set(asked(run)) & {0, 5, 10, 15, 20, 25})
    assert executed(episode) == list(range(30))


def test_unlike_upstream_every_observation_must_be_answered(run: Run) -> None:
    run(chunk_size_threshold=0.5)
    assert all(observation.must_go for observation in run.transport.sent)


def test_must_go_with_an_empty_queue_as_upstream_when_asked_for(run: Run) -> None:
    run(chunk_size_threshold=0.5, must_go="queue_empty", clock="realtime")
    assert [observation.must_go for observation in run.transport.sent] == [True] + [False] * (len(asked(run)) - 1)


def test_filtered_observation_is_asked_again_when_the_queue_is_empty(run: Run) -> None:
    """PolicyServer drops what does not have to be answered: the run must go on all the same."""
    policy = timestep_policy(rows=10)
    transport = run.transport = ScriptedTransport(policy)
    original = transport._send

    def filter_like_upstream(observation: Observation) -> None:
        if observation.must_go:
            original(observation)

    transport._send = filter_like_upstream  # type: ignore[method-assign]
    episode = run.episode(clock="realtime", must_go="queue_empty")
    assert executed(episode) == list(range(30))
    assert episode.asynchronous_chunks == 0


def test_task_is_the_environments_unless_given(run: Run) -> None:
    run()
    assert {observation.task for observation in run.transport.sent} == {"do nothing"}


def test_task_of_the_configuration_wins(run: Run) -> None:
    run(task="do something")
    assert {observation.task for observation in run.transport.sent} == {"do something"}


# Taking effect.


def test_delay_of_nothing_is_synchronous(run: Run) -> None:
    episode = run.episode(chunk_size_threshold=0.0)
    assert [(c.requested_step, c.merged_step, c.queued) for c in episode.chunks] == [
        (0, 0, 0),
        (10, 10, 0),
        (20, 20, 0),
    ]
    assert episode.starved_steps == 0


@pytest.mark.parametrize("delay", [1, 2, 4, 5])
def test_chunk_takes_effect_after_its_delay_and_never_earlier(run: Run, delay: int) -> None:
    episode = run.episode(inference_delay=str(delay), chunk_size_threshold=0.5, aggregate_fn_name="latest_only")
    first, *others = episode.chunks
    assert (first.requested_step, first.merged_step) == (0, 0)  # nothing to do but wait
    assert others
    assert all(c.merged_step - c.requested_step == delay for c in others)
    assert all(c.queued == 5 - delay for c in others)
    # Which chunk an action came from: the old one until the new one takes effect.
    merged_at = {c.merged_step: c.requested_step for c in episode.chunks}
    source, expected = 0, []
    for step in range(30):
        source = merged_at.get(step, source)
        expected.append(source)
    assert episode.actions[:, 1].astype(int).tolist() == expected


def test_overlapping_actions_are_aggregated(run: Run) -> None:
    episode = run.episode(inference_delay="0", chunk_size_threshold=0.5, aggregate_fn_name="average")
    # Chunks at 0, 5, 10, ...: actions 5 to 9 were in the first and in the second.
    assert episode.actions[5:10, 1].tolist() == [2.5] * 5
    assert [c.aggregated for c in episode.chunks] == [0, 5, 5, 5, 5, 5]


def test_starvation_waits_by_default(run: Run) -> None:
    run.transport = ScriptedTransport(timestep_policy(rows=4))
    episode = run.episode(inference_delay="6", chunk_size_threshold=0.5)
    assert executed(episode) == list(range(30))
    assert episode.starved_steps > 0


def test_starvation_holds_when_asked_for(run: Run) -> None:
    episode = run.episode(inference_delay="3", chunk_size_threshold=0.0, on_starvation="hold")
    held = [step for step, action in enumerate(episode.actions) if (action == -1).all()]
    assert held == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert episode.starved_steps == 8  # the first step of an episode is nobody's fault
    # What the chunk held for the steps that passed is gone.
    assert executed(episode)[3:10] == list(range(3, 10))
    assert [c.stale for c in episode.chunks] == [3, 3, 3]


def merges(result: EvaluationResult) -> list[list[tuple[int, int]]]:
    """Per episode, before which steps its chunks were asked for and took effect."""
    return [[(c.requested_step, c.merged_step) for c in episode.chunks] for episode in result.episodes]


@pytest.mark.parametrize(
    "flags",
    [
        {"inference_delay": "2"},
        {"inference_delay": "2", "on_starvation": "hold"},
        {"inference_delay": "4"},
        {"clock": "realtime"},
        {"clock": "realtime", "on_starvation": "hold"},
    ],
)
def test_recorded_delays_replay_their_run(run: Run, flags: dict) -> None:
    """Over several episodes, the last request of each still open at its end: none may shift those that follow."""

    def environment_and_server() -> None:
        run.environments = [StubEnvironment(max_episode_steps=17)]
        transport = run.transport = ScriptedTransport(timestep_policy(rows=10))
        original = transport._send

        def send(observation: Observation) -> None:
            transport._polls = observation.timestep * 7 % 6
            original(observation)

        transport._send = send  # type: ignore[method-assign]

    environment_and_server()
    client = run.client(n_episodes=4, **flags)
    first = client.run()
    environment_and_server()
    flags = flags | {"clock": "simulated", "inference_delay": None}
    again = run(n_episodes=4, inference_delay_trace=client.output_dir / "inference_delays.json", **flags)
    assert any(episode.late_chunks for episode in first.episodes)
    assert merges(again) == merges(first)
    for one, other in zip(first.episodes, again.episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_delay_is_calibrated_once_and_recorded(run: Run) -> None:
    policy = timestep_policy(rows=10)

    def slow(observation: Observation) -> np.ndarray:
        time.sleep(0.011)  # 2.2 steps at the stub's 200 Hz
        return policy(observation)

    run.transport = ScriptedTransport(slow)
    client = run.client(inference_delay="auto", n_episodes=2)
    result = client.run()
    (delay,) = result.inference_delay_steps
    assert delay >= 3
    delays = {c.merged_step - c.requested_step for e in result.episodes for c in e.chunks[1:]}
    assert delays <= {delay}
    assert run.environments[0].seeds == [1000, 1001]  # calibrating resets nothing
    written = json.loads((client.output_dir / "eval_info.json").read_text())
    assert written["overall"]["async"]["inference_delay_steps"] == [delay]
    # The policy is reset between what it was calibrated with and the first episode.
    assert {o.episode for o in run.transport.sent[:6]}.isdisjoint(o.episode for o in run.transport.sent[6:])

    run.environments, run.transport = [StubEnvironment()], ScriptedTransport(policy)
    again = run(inference_delay=str(delay), n_episodes=2)
    for one, other in zip(result.episodes, again.episodes, strict=True):
        # Calibrating used up six timesteps, which the stub's actions tell.
        np.testing.assert_array_equal(one.actions - 6, other.actions)


def test_delay_in_seconds_is_rounded_up_at_the_control_rate(run: Run) -> None:
    assert run(inference_delay=None, inference_delay_s=0.011).inference_delay_steps == (3,)  # 200 Hz


def test_delay_in_seconds_counts_in_steps_of_the_given_rate(run: Run) -> None:
    assert run(inference_delay=None, inference_delay_s=0.011, fps=1000.0).inference_delay_steps == (11,)


def test_the_simulator_goes_on_while_a_chunk_is_computed(run: Run) -> None:
    """The server answers only when it has seen the simulator step on: a client that waits at once never gets there."""
    delay, environment = 3, run.environments[0]
    original = run.transport._receive

    def receive(timeout_s: float) -> ActionChunk | None:
        asked_at = run.transport.sent[-1].timestep
        stepped = sum(map(len, environment.actions))
        return original(timeout_s) if asked_at == 0 or stepped == asked_at + delay else None

    run.transport._receive = receive  # type: ignore[method-assign]
    episode = run.episode(inference_delay=str(delay), inference_timeout_s=5.0)
    assert len(episode.chunks) > 3


def test_simulated_clock_does_not_depend_on_the_servers_speed(run: Run) -> None:
    def actions(polls: int) -> np.ndarray:
        run.environments, run.transport = [StubEnvironment()], ScriptedTransport(timestep_policy(rows=10), polls=polls)
        return run.episode(inference_delay="3").actions

    np.testing.assert_array_equal(actions(polls=0), actions(polls=100))


def test_unlike_upstream_a_late_chunk_of_an_ended_episode_is_dropped(run: Run) -> None:
    """The next episode must not execute what was computed for the last one."""
    run.environments = [StubEnvironment(max_episode_steps=7)]
    run.transport = ScriptedTransport(timestep_policy(rows=10))
    result = run(n_episodes=3, inference_delay="4", chunk_size_threshold=0.5)
    assert [e.late_chunks for e in result.episodes] == [0, 1, 1]
    assert [executed(e) for e in result.episodes] == [list(range(0, 7)), list(range(7, 14)), list(range(14, 21))]


# Threads.


def test_receiving_thread_of_the_users(run: Run) -> None:
    """The programming interface of RobotClient, verbatim."""
    client = run.client(clock="realtime", n_episodes=5, chunk_size_threshold=0.7, aggregate_fn_name="latest_only")
    client.start()
    action_thread = threading.Thread(target=client.receive_actions, daemon=True)
    action_thread.start()
    client.control_loop(task="")
    client.stop()
    action_thread.join(5)
    assert not action_thread.is_alive()
    # Unlike upstream's unlocked merge: nothing lost, nothing twice, whatever the two threads do.
    timesteps = [t for episode in client.result.episodes for t in executed(episode)]
    assert timesteps == list(range(150))


def test_unlike_upstream_one_thread_alone_touches_the_queue(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """RobotClient merges in the thread that receives, and reads the queue outside its lock meanwhile."""
    threads: dict[str, set[int]] = {}
    for name in ("merge", "pop", "start_episode", "wants_observation", "__len__"):
        original = getattr(ActionQueue, name)

        def watched(self: ActionQueue, *arguments: Any, name: str = name, original: Any = original) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return original(self, *arguments)

        monkeypatch.setattr(ActionQueue, name, watched)
    client = run.client(clock="realtime", n_episodes=2, chunk_size_threshold=0.9)
    client.start()
    receiver = threading.Thread(target=client.receive_actions)
    receiver.start()
    client.control_loop()
    client.stop()
    receiver.join()
    assert set().union(*threads.values()) == {threading.get_ident()}
    assert threads.keys() >= {"merge", "pop", "__len__"}


def test_error_in_the_receiving_thread_reaches_the_control_loop(run: Run) -> None:
    client = run.client(clock="realtime")
    client.start()
    run.transport.errors.append(PolicyError("it broke", 0))
    receiver = threading.Thread(target=client.receive_actions)
    receiver.start()
    with pytest.raises(PolicyError, match="it broke"):
        client.control_loop()
    client.stop()
    receiver.join()


def test_stop_from_another_thread_ends_the_loop(run: Run) -> None:
    run.transport.silent = True
    client = run.client(clock="realtime")
    client.start()
    stopper = threading.Timer(0.1, client.stop)
    stopper.start()
    with pytest.raises(Exception, match="closed"):
        client.control_loop()
    stopper.join()


# Ends.


def test_unlike_upstream_no_wait_is_endless(run: Run) -> None:
    run.transport.silent = True
    with pytest.raises(TransportTimeout, match="inference_timeout_s"):
        run(inference_timeout_s=0.05)


def test_server_that_comes_back_within_its_window_may_take_longer_than_an_inference(run: Run) -> None:
    run.transport.silent = True
    server = threading.Timer(0.3, lambda: setattr(run.transport, "silent", False))
    server.start()
    episode = run.episode(inference_timeout_s=0.05, reconnect_timeout_s=30.0)
    server.join()
    assert episode.length == 30


def test_unanswered_request_is_noticed_while_actions_are_queued(run: Run) -> None:
    run.environments = [StubEnvironment(max_episode_steps=1000)]
    run.transport = ScriptedTransport(timestep_policy(rows=500))
    client = run.client(clock="realtime", inference_timeout_s=0.05, chunk_size_threshold=1.0, actions_per_chunk=500)
    original = run.transport._send

    def answer_once(observation: Observation) -> None:
        original(observation)
        run.transport.silent = observation.timestep > 0

    run.transport._send = answer_once  # type: ignore[method-assign]
    with pytest.raises(TransportTimeout):
        client.run()


def test_policy_error_ends_the_run_and_keeps_what_was_done(run: Run) -> None:
    client = run.client(n_episodes=3)
    sent: list[int] = []

    def fail_in_the_third(observation: Observation) -> np.ndarray:
        sent.append(observation.timestep)
        if observation.episode == 2:
            raise PolicyError("it broke", observation.timestep)
        return timestep_policy(rows=10)(observation)

    run.transport._policy_fn = fail_in_the_third
    with pytest.raises(PolicyError):
        client.run()
    assert len(client.result.episodes) == 2
    assert (client.output_dir / "eval_info.json").is_file()
    assert run.transport.closed
    assert run.environments[0].closed


def test_success_ends_an_episode(run: Run) -> None:
    run.environments = [StubEnvironment(success_at=12)]
    episode = run.episode()
    assert (episode.success, episode.length, episode.sum_reward, episode.max_reward) == (True, 12, 1.0, 1.0)


def test_step_limit_ends_an_episode(run: Run) -> None:
    episode = run.episode()
    assert (episode.success, episode.length) == (False, 30)


def test_unlike_upstream_latencies_do_not_follow_the_wall_clock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which upstream subtracts from each other: here it runs backwards by an hour a look."""
    now_s = [1e9]

    def backwards() -> float:
        now_s[0] -= 3600
        return now_s[0]

    monkeypatch.setattr(time, "time", backwards)
    episode = run.episode()
    assert all(0 <= chunk.latency_s < 60 for chunk in episode.chunks)


def test_starting_twice_is_refused(run: Run) -> None:
    client = run.client()
    client.start()
    with pytest.raises(ConfigError, match="starts once"):
        client.start()
    client.control_loop()
    client.stop()
    with pytest.raises(ConfigError, match="starts once"):
        client.start()


def test_simulator_that_fails_to_close_keeps_nothing_else_open(run: Run) -> None:
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=1)]

    def fail() -> None:
        raise RuntimeError("the simulator crashed")

    run.environments[0].close = run.environments[1].close = fail  # type: ignore[method-assign]
    client = run.client()
    client.start()
    with pytest.raises(RuntimeError, match="crashed"):
        client.stop()
    assert run.transport.closed


@pytest.mark.parametrize(("address", "shared"), [("grpc://127.0.0.1:1", True), ("grpc://gpu.lab:1", False)])
def test_path_of_the_checkpoint_is_absolute_for_a_server_on_this_machine_only(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, shared: bool
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"type": "act", "input_features": {"observation.images.camera": {"shape": [3, 4, 4]}}}'
    )
    monkeypatch.chdir(tmp_path)
    client = run.client(server_address=address, pretrained_name_or_path="model")
    client.start()
    assert run.transport._policy is not None
    assert run.transport._policy.pretrained_name_or_path == (str(tmp_path / "model") if shared else "model")
    client.stop()


def test_control_loop_before_start_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="start"):
        run.client().control_loop()


def test_actions_are_given_on_the_client_device(run: Run) -> None:
    """cpu:0 is a device that every machine has and that is not the default."""
    import torch

    given: list[object] = []
    environment = run.environments[0]
    original = environment.step

    def step(action: np.ndarray, *, render: bool = True) -> StepResult:
        given.append(action)
        return original(np.asarray(action), render=render)

    environment.step = step  # type: ignore[method-assign]
    episode = run.episode(client_device="cpu:0")
    assert all(isinstance(action, torch.Tensor) for action in given)
    assert executed(episode) == list(range(30))


# Frames.


@pytest.mark.parametrize(
    ("flags", "in_vain"),
    [
        ({"chunk_size_threshold": 0.0}, []),
        ({"chunk_size_threshold": 0.5, "inference_delay": "3"}, []),
        # Before the first chunk nobody knows how long a chunk is: the frame at its arrival might be needed.
        ({"chunk_size_threshold": 0.0, "inference_delay": "3", "on_starvation": "hold"}, [3]),
    ],
)
def test_only_frames_that_are_sent_are_rendered(run: Run, flags: dict, in_vain: list[int]) -> None:
    run.episode(**flags)
    rendered = [step for step, render in enumerate(run.environments[0].rendered[0][:-1]) if render]
    assert rendered == sorted(asked(run) + in_vain)


@pytest.mark.parametrize("polls", [0, 1, 3, 7])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_realtime_renders_what_it_sends(run: Run, polls: int, threshold: float) -> None:
    run.transport = ScriptedTransport(timestep_policy(rows=10), polls=polls)
    episode = run.episode(clock="realtime", chunk_size_threshold=threshold, aggregate_fn_name="latest_only")
    assert executed(episode) == list(range(30))


def test_every_frame_is_rendered_when_asked_for(run: Run) -> None:
    run(render="always")
    assert all(run.environments[0].rendered[0])


def test_first_episodes_are_recorded_and_nothing_else_changes(run: Run) -> None:
    """The first ones of each task, named by task, episode and outcome; the policy is shown the same frames as ever."""
    run.environments = [StubEnvironment(task_id=0), StubEnvironment(task_id=4, success_at=9)]
    client = run.client(n_videos=2, n_episodes=3)
    client.run()
    folder = client.output_dir / "videos"
    names = ["stub_0/eval_episode_0_failure.mp4", "stub_0/eval_episode_1_failure.mp4"]
    names += ["stub_4/eval_episode_0_success.mp4", "stub_4/eval_episode_1_success.mp4"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4")) == names
    written = json.loads((client.output_dir / "eval_info.json").read_text())
    assert written["overall"]["video_paths"] == [str(folder / name) for name in names]
    for environment in run.environments:
        assert environment.rendered[0] == environment.rendered[2]
    # The first frame is the reset's, and every step adds one.
    assert [frames_in(folder / name) for name in names] == [31, 31, 10, 10]


def frames_in(path: Path) -> int:
    import av

    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def test_chunks_of_changing_length_never_stall(run: Run) -> None:
    def policy(observation: Observation) -> np.ndarray:
        return timestep_policy(rows=1 + observation.timestep * 7 % 10)(observation)

    for flags in (
        {},
        {"inference_delay": "2"},
        {"inference_delay": "4", "on_starvation": "hold"},
        {"clock": "realtime"},
    ):
        run.environments, run.transport = [StubEnvironment()], ScriptedTransport(policy)
        assert run.episode(**flags).length == 30


def test_chunk_answers_are_of_the_right_kind(run: Run) -> None:
    assert isinstance(run.transport._policy_fn(Observation.empty(run.environments[0].features)), np.ndarray)
    assert ActionChunk(np.zeros((1, 2), np.float32), 0).arrived_ns > 0
