"""LIBERO's frames are flipped straight into the transport's shared memory: no array of the client's in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from shm_actor import ChecksumHandler, expected_actions

from async_delta_inference.client.environments.construction import LeRobotTask
from async_delta_inference.client.environments.lerobot_env import LeRobotEnvironment
from async_delta_inference.transport import Observation, SessionSpec, Transport, open_transport
from async_delta_inference.transport.shm.endpoint import ShmEndpoint
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE


class LiberoLayout(gymnasium.Env[Any, Any]):
    """Observes noise in LIBERO's layout; stands for its simulator only."""

    _max_episode_steps = 10
    action_space = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, height: int, width: int) -> None:
        camera, joints = spaces.Box(0, 255, (height, width, 3), np.uint8), spaces.Box(-1, 1, (2,))
        eef = spaces.Dict(pos=spaces.Box(-1, 1, (3,)), quat=spaces.Box(-1, 1, (4,)))
        self.observation_space = spaces.Dict(
            pixels=spaces.Dict(image=camera, image2=camera),
            robot_state=spaces.Dict(eef=eef, gripper=spaces.Dict(qpos=joints)),
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        self.seen = self.observation_space.sample()
        return self.seen, {}


def environment_of(simulator: LiberoLayout) -> LeRobotEnvironment:
    return LeRobotEnvironment(LeRobotTask("libero", 0, simulator, lambda: simulator, 20.0))


@pytest.fixture(params=[(96, 96), (97, 61), (256, 256)], ids=str)
def simulator(request: pytest.FixtureRequest) -> LiberoLayout:
    return LiberoLayout(*request.param)


@pytest.fixture
def transport(simulator: LiberoLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sockets"))
    endpoint = ShmEndpoint("frames", ChecksumHandler())
    endpoint.start()
    features = environment_of(simulator).features
    with open_transport(endpoint.uri) as transport:
        transport.connect(SessionSpec("act", "nothing", 10, features, action_dim=4))
        yield transport
    endpoint.stop()


def test_frames_are_flipped_straight_into_the_slot(
    simulator: LiberoLayout, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = environment_of(simulator)
    copyto = np.copyto

    def no_images(target: NDArray[Any], source: Any, **options: Any) -> None:
        assert target.ndim < 3, "an image was copied"
        copyto(target, source, **options)

    monkeypatch.setattr(np, "copyto", no_images)
    # More often than there are slots, so that every slot is written to.
    for seed in range(9):
        environment.reset(seed)
        loan = transport.loan_observation()
        slots = dict(loan.images)
        environment.write_observation(loan)
        loan.timestep = seed
        expected = expected_actions(expected_observation(environment, simulator, seed))
        assert all(loan.images[camera] is slot for camera, slot in slots.items())
        transport.send_observation(loan)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tolist() == expected.tolist()


def expected_observation(environment: LeRobotEnvironment, simulator: LiberoLayout, timestep: int) -> Observation:
    """What LeRobot's own flip gives."""
    images = {camera: image[::-1, ::-1].copy() for camera, image in simulator.seen["pixels"].items()}
    return Observation(state=environment.state(), images=images, timestep=timestep)
