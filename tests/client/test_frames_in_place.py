"""A frame goes from the simulator's array straight into the transport's memory: no array of the client's in between.

Whatever allocates is found, however it is spelt: numpy, and OpenCV through it, report every array to tracemalloc.
"""

from __future__ import annotations

import itertools
import os
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from async_delta_inference.client.environments.construction import LeRobotTask
from async_delta_inference.client.environments.lerobot_env import LeRobotEnvironment
from async_delta_inference.client.environments.observation import write_image
from async_delta_inference.transport import Observation, SessionSpec, Transport, connect, serve
from async_delta_inference.transport.shm.shared.rendezvous import FOLDER_VARIABLE

_names = (f"frames-{os.getpid()}-{number}" for number in itertools.count())

CAMERAS = ("image", "image2")
ROWS = 10


class Simulator(gymnasium.Env[Any, Any]):
    """Observes noise in one of LeRobot's layouts; stands for any simulator."""

    _max_episode_steps = 10
    action_space = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, height: int, width: int, *, libero: bool) -> None:
        camera, joints = spaces.Box(0, 255, (height, width, 3), np.uint8), spaces.Box(-1, 1, (2,))
        eef = spaces.Dict(pos=spaces.Box(-1, 1, (3,)), quat=spaces.Box(-1, 1, (4,)))
        pixels = spaces.Dict(dict.fromkeys(CAMERAS, camera))
        if libero:
            self.observation_space = spaces.Dict(
                pixels=pixels, robot_state=spaces.Dict(eef=eef, gripper=spaces.Dict(qpos=joints))
            )
        else:
            self.observation_space = spaces.Dict(pixels=pixels, agent_pos=joints)
        self.libero = libero
        self.frame_bytes = height * width * 3

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        self.seen = self.observation_space.sample()
        return self.seen, {}

    def frame(self, camera: str) -> NDArray[np.uint8]:
        """As the policy is to see it: LIBERO's are upside down."""
        image: NDArray[np.uint8] = self.seen["pixels"][camera]
        return image[::-1, ::-1].copy() if self.libero else image


def environment_of(simulator: Simulator) -> LeRobotEnvironment:
    return LeRobotEnvironment(LeRobotTask("frames", 0, simulator, lambda: simulator, 20.0))


@pytest.fixture(params=[(96, 96), (97, 61), (256, 256)], ids=str)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    height, width = request.param
    return height, width


@pytest.fixture(params=[True, False], ids=["rotated", "as it is"])
def simulator(request: pytest.FixtureRequest, size: tuple[int, int]) -> Simulator:
    return Simulator(*size, libero=request.param)


def most_allocated_bytes(call: Callable[[], object]) -> int:
    """How much more memory was in use at some moment of a call than at its beginning."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def test_tracing_sees_an_array_in_between(simulator: Simulator) -> None:
    """Also one that OpenCV makes; else the tests below would prove nothing."""
    import cv2

    simulator.reset(seed=0)
    image = simulator.seen["pixels"]["image"]
    assert most_allocated_bytes(image.copy) >= simulator.frame_bytes
    assert most_allocated_bytes(lambda: cv2.flip(image, -1)) >= simulator.frame_bytes
    assert most_allocated_bytes(lambda: np.ascontiguousarray(image[::-1, ::-1])) >= simulator.frame_bytes


@pytest.mark.parametrize("rotate", [True, False])
def test_image_is_written_without_an_array_in_between(size: tuple[int, int], rotate: bool) -> None:
    source = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    # In the middle of other memory, as a slot's image is.
    memory = np.zeros(source.size + 128, np.uint8)
    target = memory[64:-64].reshape(source.shape)
    write_image(source, target, rotate=rotate)  # what is imported is imported
    target[:] = 0
    assert most_allocated_bytes(lambda: write_image(source, target, rotate=rotate)) < source.size / 4
    np.testing.assert_array_equal(target, source[::-1, ::-1] if rotate else source)
    assert not memory[:64].any()
    assert not memory[-64:].any()


def checksums(observation: Observation) -> NDArray[np.float32]:
    """What arrived, in actions: half a checksum in each column, which float32 holds exactly."""
    sums = [zlib.crc32(observation.images[camera]) for camera in CAMERAS]
    halves = [half for checksum in sums for half in divmod(checksum, 2**16)]
    return np.tile(np.array(halves, np.float32), (ROWS, 1))


@pytest.fixture(params=["shm", "inproc"])
def transport(
    request: pytest.FixtureRequest, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Transport]:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "sockets"))
    spec = SessionSpec("", "", ROWS, environment_of(simulator).features, action_dim=4)
    with serve(checksums, f"{request.param}://{next(_names)}") as server, connect(server.uris[0], spec) as transport:
        yield transport


def test_frames_are_written_straight_into_the_loan(simulator: Simulator, transport: Transport) -> None:
    """All slots have their turn: there are more observations than slots."""
    environment = environment_of(simulator)
    allocated: list[int] = []
    for seed in range(9):
        environment.reset(environment.episode(0, seed))
        loan = transport.loan_observation()
        slots = dict(loan.images)
        allocated.append(most_allocated_bytes(lambda loan=loan: environment.write_observation(loan)))
        assert all(loan.images[camera] is slot for camera, slot in slots.items())
        loan.timestep = seed
        expected = checksums(Observation({c: simulator.frame(c) for c in CAMERAS}, environment.state()))
        transport.send_observation(loan)
        chunk = transport.receive_actions(30.0)
        assert chunk is not None
        assert chunk.actions.tolist() == expected.tolist()
    assert max(allocated[1:]) < simulator.frame_bytes / 4


def test_loan_is_sent_and_answered_without_another_array_of_it(simulator: Simulator, transport: Transport) -> None:
    """All that follows the loan: written, sent, seen by the policy, answered."""
    environment = environment_of(simulator)

    def exchange(loan: Observation) -> None:
        environment.write_observation(loan)
        transport.send_observation(loan)
        assert transport.receive_actions(30.0) is not None

    allocated: list[int] = []
    for seed in range(9):
        environment.reset(environment.episode(0, seed))
        loan = transport.loan_observation()
        loan.timestep = seed
        allocated.append(most_allocated_bytes(lambda loan=loan: exchange(loan)))
    assert max(allocated[1:]) < simulator.frame_bytes / 2
