"""Real-time chunking held to LeRobot's own: the parts of lerobot-rollout's engine, asked for the same observations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import _normalize_prev_actions_length, supports_rtc_inference
from small_policies import ACTION_DIM, build, features_of

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.lerobot.noise import seed_of
from async_delta_inference.transport import Observation, PolicyOptions, RtcOptions, SessionSpec, connect, serve
from async_delta_inference.transport.policy import EpisodeStart, Request

pytest.importorskip("num2words", reason="smolvla needs num2words")

CHUNK, HORIZON = 20, 10
FEATURES = features_of("smolvla")
PLAN = [(0, 0), (6, 3), (12, 3), (26, 5), (33, 2)]
"""Timesteps at which a chunk is asked for, and its delay; at 26 six actions of the last chunk are left."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("smolvla", tmp_path_factory.mktemp("smolvla"))


@pytest.fixture(scope="module")
def served() -> LeRobotPolicy:
    return LeRobotPolicy()


def spec_of(checkpoint: Path, policy_type: str = "smolvla", **rtc: Any) -> SessionSpec:
    options = PolicyOptions(seed=7, rtc=RtcOptions(**{"enabled": True, "execution_horizon": HORIZON} | rtc))
    return SessionSpec(policy_type, str(checkpoint), CHUNK, FEATURES, ACTION_DIM, options=options)


def observed(timestep: int, delay: int | None, client: int = 0) -> Observation:
    rng = np.random.default_rng([timestep, client])
    observation = Observation.empty(FEATURES)
    for image in observation.images.values():
        image[:] = rng.integers(0, 256, image.shape, np.uint8)
    observation.state[:] = rng.normal(size=observation.state.shape)
    observation.timestep, observation.inference_delay, observation.task = timestep, delay, "pick up the soup"
    return observation


def answers(policy: LeRobotPolicy, session: Any, plan: list[tuple[int, int]], client: int = 0) -> list[np.ndarray]:
    found = []
    for timestep, delay in plan:
        (answer,) = policy.infer([Request(session, observed(timestep, delay, client), lambda: None)])
        assert isinstance(answer, np.ndarray), answer
        found.append(answer)
    return found


def of_lerobot(policy: LeRobotPolicy, session: Any, config: RTCConfig, *, pads: bool) -> list[np.ndarray]:
    """As `RTCInferenceEngine._rtc_loop` does it, with the delays of the plan for those that it would measure."""
    assert policy.loaded is not None
    model, around = policy.loaded.policy, session.around
    model.config.rtc_config = config
    model.init_rtc_processor()
    queue, executed, found = ActionQueue(config), 0, []
    for timestep, delay in PLAN:
        for _ in range(timestep - executed):
            queue.get()
        executed = timestep
        before, left = queue.get_action_index(), queue.get_left_over()
        if left is not None and pads:
            left = _normalize_prev_actions_length(left, target_steps=config.execution_horizon)
        batch, finished = around.prepare(observed(timestep, delay), "pick up the soup")
        torch.manual_seed(seed_of(7, 0, timestep))
        with torch.no_grad():
            actions = model.predict_action_chunk(
                around.preprocess(batch, finished), inference_delay=delay, prev_chunk_left_over=left
            )
            original = actions.squeeze(0).clone()
            processed = torch.from_numpy(around.postprocess(actions))
        found.append(processed.numpy())
        # What is executed while it is computed is the last chunk's.
        for _ in range(delay):
            queue.get()
        executed += delay
        queue.merge(original, processed, delay, before)
    model.config.rtc_config = None
    model.init_rtc_processor()
    return found


@pytest.mark.parametrize("short_leftover", ["pad", "shorten"])
@pytest.mark.parametrize("schedule", ["LINEAR", "EXP"])
def test_chunks_are_lerobots_bit_for_bit(
    served: LeRobotPolicy, checkpoint: Path, short_leftover: str, schedule: str
) -> None:
    session = served.open(
        spec_of(checkpoint, short_leftover=short_leftover, prefix_attention_schedule=schedule, max_guidance_weight=5.0)
    )
    session.reset(EpisodeStart(0, ""))
    ours = answers(served, session, PLAN)
    config = RTCConfig(True, RTCAttentionSchedule[schedule], 5.0, HORIZON)
    theirs = of_lerobot(served, session, config, pads=short_leftover == "pad")
    for mine, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, their)
    session.close()


def test_a_chunk_continues_the_one_before_it(served: LeRobotPolicy, checkpoint: Path) -> None:
    """What is executed while the chunk is computed, the chunk has, too: it goes on from there."""
    gaps = {}
    for enabled in (True, False):
        session = served.open(spec_of(checkpoint, enabled=enabled))
        session.reset(EpisodeStart(0, ""))
        first, second = answers(served, session, [(0, 0), (6, 3)])
        gaps[enabled] = float(np.linalg.norm(first[6:9] - second[:3]))
        session.close()
    assert gaps[True] < 0.1 * gaps[False]


def test_sessions_continue_chunks_of_their_own(served: LeRobotPolicy, checkpoint: Path) -> None:
    sessions = [served.open(spec_of(checkpoint)), served.open(spec_of(checkpoint, enabled=False))]
    alone = []
    for client, session in enumerate(sessions):
        session.reset(EpisodeStart(0, ""))
        alone.append(answers(served, session, PLAN, client))
        session.reset(EpisodeStart(0, ""))
    turns = [[answers(served, session, [step], client)[0] for client, session in enumerate(sessions)] for step in PLAN]
    for mine, together in zip(alone, zip(*turns, strict=True), strict=True):
        for expected, found in zip(mine, together, strict=True):
            np.testing.assert_array_equal(found, expected)
    for session in sessions:
        session.close()


def test_an_episode_begins_without_a_last_chunk(served: LeRobotPolicy, checkpoint: Path) -> None:
    session = served.open(spec_of(checkpoint))
    session.reset(EpisodeStart(0, ""))
    (first, _) = answers(served, session, [(0, 0), (6, 3)])
    session.reset(EpisodeStart(0, ""))
    (again,) = answers(served, session, [(0, 0)])
    np.testing.assert_array_equal(again, first)
    session.close()


def over(uri: str, checkpoint: Path) -> list[np.ndarray]:
    found = []
    with connect(uri, spec_of(checkpoint)) as transport:
        for timestep, delay in PLAN:
            transport.send_observation(observed(timestep, delay))
            chunk = transport.receive_actions(60.0)
            assert chunk is not None
            found.append(chunk.actions.copy())
    return found


def test_the_delay_travels(served: LeRobotPolicy, checkpoint: Path, runtime_folder: Path) -> None:
    expected = None
    for scheme in ("inproc", "shm", "grpc"):
        address = "127.0.0.1:0" if scheme == "grpc" else "rtc"
        with serve(served, f"{scheme}://{address}") as server:
            found = over(server.uris[0], checkpoint)
        expected = expected or found
        for mine, first in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, first)


def test_smolvla_is_compiled_where_its_own_flag_says_so(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By LeRobot, which nothing slow is left to."""
    compiled: set[tuple[str, str]] = set()

    def compile_nothing(function: Any, *, mode: str) -> Any:
        compiled.add((function.__name__, mode))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    policy = LeRobotPolicy()
    options = PolicyOptions(overrides=("compile_model=true", "compile_mode=reduce-overhead"))
    policy.open(SessionSpec("smolvla", str(checkpoint), CHUNK, FEATURES, ACTION_DIM, options=options)).close()
    assert compiled == {("sample_actions", "reduce-overhead"), ("forward", "reduce-overhead")}
    said = policy.computation()
    assert (said["compiled"], said["compile_mode"]) == (True, "reduce-overhead")


def test_a_delay_that_nobody_tells_is_an_error(served: LeRobotPolicy, checkpoint: Path) -> None:
    session = served.open(spec_of(checkpoint))
    session.reset(EpisodeStart(0, ""))
    (answer,) = served.infer([Request(session, observed(0, None), lambda: None)])
    assert isinstance(answer, PolicyError)
    assert "inference delay" in str(answer)
    session.close()


def test_a_policy_without_it_is_refused_by_name(served: LeRobotPolicy, tmp_path: Path) -> None:
    with pytest.raises(SetupRefusedError, match="the policy type act has no real-time chunking"):
        served.open(spec_of(build("act", tmp_path), "act"))
    assert served.loaded is not None
    assert not supports_rtc_inference(served.loaded.policy)


def test_lerobots_protocol_refuses_it(served: LeRobotPolicy, checkpoint: Path) -> None:
    from async_delta_inference.transport import GrpcOptions, LinkOptions, TransportOptions

    options = TransportOptions(link=LinkOptions(grpc=GrpcOptions(dialect="lerobot")))
    with serve(served, "grpc://127.0.0.1:0") as server, pytest.raises(SetupRefusedError, match="cannot carry"):
        connect(server.uris[0], spec_of(checkpoint), options)


def test_a_function_refuses_it(checkpoint: Path) -> None:
    refusal = pytest.raises(SetupRefusedError, match="is a function, and has no real-time chunking")
    with serve(lambda observation: [[0.0] * ACTION_DIM], "inproc://rtc_function") as server, refusal:
        connect(server.uris[0], spec_of(checkpoint))
