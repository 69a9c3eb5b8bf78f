"""`lerobot-policy-act-smooth` as it is: what it is told of the robot's actions, in its units, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_policies import ACTION_DIM, SIDE, build, features_of
from stub_environment import StubEnvironment

from async_delta_inference.client import SimClient, SimClientConfig
from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import (
    ActionPrefix,
    Observation,
    ObservationFeatures,
    PrefixLimits,
    SessionSpec,
    serve,
)
from async_delta_inference.transport.policy import EpisodeStart, Request

plugin = pytest.importorskip(
    "lerobot_policy_act_smooth", reason="needs lerobot-policy-act-smooth, which the extra act-smooth installs"
)

CHUNK, PAST, FUTURE = 20, 2, 4
FEATURES = features_of("act_smooth")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("act_smooth", tmp_path_factory.mktemp("act_smooth"))


@pytest.fixture(scope="module")
def served() -> LeRobotPolicy:
    return LeRobotPolicy()


def spec_of(checkpoint: Path, features: ObservationFeatures = FEATURES, **options: Any) -> SessionSpec:
    return SessionSpec("act_smooth", str(checkpoint), CHUNK, features, ACTION_DIM, **options)


def observed(executed: int, committed: int, delay: int | None) -> Observation:
    rng = np.random.default_rng([executed, committed])
    observation = Observation.empty(FEATURES)
    for image in observation.images.values():
        image[:] = rng.integers(0, 256, image.shape, np.uint8)
    observation.state[:] = rng.normal(size=observation.state.shape)
    rows = rng.normal(size=(executed + committed, ACTION_DIM)).astype(np.float32)
    observation.prefix, observation.inference_delay = ActionPrefix.of_rows(rows, executed), delay
    return observation


def asked(policy: LeRobotPolicy, checkpoint: Path, *observations: Observation) -> list[Any]:
    """The answer to each, of a session of its own; all together."""
    sessions = [policy.open(spec_of(checkpoint)) for _ in observations]
    for session in sessions:
        session.reset(EpisodeStart(0, ""))
    requests = [Request(s, o, lambda: None) for s, o in zip(sessions, observations, strict=True)]
    answers = list(policy.infer(requests))
    for session in sessions:
        session.close()
    return answers


def by_hand(policy: LeRobotPolicy, checkpoint: Path, observation: Observation, told: int) -> np.ndarray:
    """The plugin's own call; actions are normalised by its own pipeline, among a whole batch."""
    assert policy.loaded is not None
    assert observation.prefix is not None
    session = policy.open(spec_of(checkpoint))
    batch, finished = session.around.prepare(observation, "")
    whole = session.around.preprocess(batch, finished)
    actions, is_pad = torch.zeros(1, PAST + FUTURE, ACTION_DIM), torch.ones(1, PAST + FUTURE, dtype=torch.bool)
    executed, committed = observation.prefix.executed, observation.prefix.committed[:told]
    for start, rows in ((PAST - len(executed), executed), (PAST, committed)):
        for place, row in enumerate(rows, start):
            images = {key: torch.zeros(1, 3, SIDE, SIDE) for key in policy.loaded.config.image_features}
            one = {**images, "observation.state": torch.zeros(1, 8), "action": torch.tensor(row)[None]}
            actions[0, place] = policy.loaded.preprocessor(one)["action"][0]
            is_pad[0, place] = False
    with torch.inference_mode():
        chunk = policy.loaded.policy.predict_action_chunk(
            {**whole, "inference_action": actions, "inference_action_is_pad": is_pad}
        )
    session.close()
    return session.around.postprocess(chunk)


@pytest.mark.parametrize(
    ("executed", "committed", "delay", "told"),
    [(2, 4, 3, 3), (2, 4, 9, 4), (0, 1, 2, 1), (1, 3, 0, 1), (0, 0, 3, 0), (2, 0, 0, 0)],
)
def test_answer_is_what_was_told_and_the_plugins_own_chunk(
    served: LeRobotPolicy, checkpoint: Path, executed: int, committed: int, delay: int, told: int
) -> None:
    observation = observed(executed, committed, delay)
    (answer,) = asked(served, checkpoint, observation)
    assert observation.prefix is not None
    expected = by_hand(served, checkpoint, observation, told)
    np.testing.assert_array_equal(answer, np.concatenate([observation.prefix.committed[:told], expected])[:CHUNK])


def test_several_are_answered_together(served: LeRobotPolicy, checkpoint: Path) -> None:
    observations = [observed(2, 4, 3), observed(0, 0, 3), observed(1, 2, 5)]
    alone = [asked(served, checkpoint, observation)[0] for observation in observations]
    for one, together in zip(alone, asked(served, checkpoint, *observations), strict=True):
        np.testing.assert_allclose(together, one, atol=1e-5)


def test_without_being_told_it_does_not_guess(served: LeRobotPolicy, checkpoint: Path) -> None:
    silent, undated = observed(0, 0, 1), observed(1, 1, None)
    silent.prefix = None
    for answer in asked(served, checkpoint, silent) + asked(served, checkpoint, undated):
        assert isinstance(answer, PolicyError)
        assert "continues the robot's actions" in str(answer)


def test_what_it_wants_stands_in_its_configuration(served: LeRobotPolicy, checkpoint: Path) -> None:
    assert served.describe(spec_of(checkpoint)).prefix == PrefixLimits(PAST, FUTURE)


def test_state_that_cannot_stand_for_the_first_action_is_refused(tmp_path: Path) -> None:
    relative = build("act_smooth", tmp_path, use_action_relative=True)
    with pytest.raises(SetupRefusedError, match="8 elements are no action of 7"):
        LeRobotPolicy().open(spec_of(relative))


class Robot(StubEnvironment):
    """Observes and acts as the policy was made for."""

    def __init__(self) -> None:
        super().__init__(40)
        self.features, self.action_dim = FEATURES, ACTION_DIM

    def write_observation(self, observation: Observation) -> None:
        observation.state[:] = self._step
        for name in FEATURES.images:
            observation.images[name][:] = self._step

    def hold_action(self) -> np.ndarray:
        return np.zeros(ACTION_DIM, np.float32)


class Spy(LeRobotPolicy):
    """Notes which actions it was told are executed before its answer takes effect."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[np.ndarray] = []

    def infer(self, requests: Any) -> Any:
        for request in requests:
            observation = request.observation
            self.told.append(observation.prefix.committed[: observation.inference_delay].copy())
        return super().infer(requests)


@pytest.mark.parametrize("uri", ["shm://continuing", "grpc://127.0.0.1:0"])
def test_it_runs_asynchronously_and_is_told_what_is_executed(checkpoint: Path, tmp_path: Path, uri: str) -> None:
    spy = Spy()
    with serve(spy, uri) as server:
        config = SimClientConfig(
            env=None,
            progress=False,
            pretrained_name_or_path=str(checkpoint),
            server_address=server.uris[0],
            clock="simulated",
            inference_delay="3",
            aggregate_fn_name="latest_only",
            n_episodes=1,
            output_dir=tmp_path / "out",
        )
        (episode,) = SimClient(config, environments=[Robot()]).run().episodes
    assert len(episode.chunks) > 2
    for committed, chunk in zip(spy.told, episode.chunks, strict=False):
        step = chunk.requested_step
        assert len(committed) == (0 if step == 0 else 3)
        np.testing.assert_array_equal(committed, episode.actions[step : step + len(committed)])
