"""A robot made of numbers for lerobot's own RobotClient, and a policy whose answers tell the robots apart.

A robot's state says who it is and which action it performed last; the action for a timestep is a function of both. So
the actions that a robot performs are known, whenever its observations happen to be answered.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig
from numpy.typing import NDArray
from upstream import robot_client_module

from async_delta_inference.transport import FunctionPolicy, Observation
from async_delta_inference.transport.testing.commands import Commands

CLIENT_MODULE = robot_client_module()
ACTIONS = 60
WAIT_S = 60.0
_JOINTS = ("one.pos", "two.pos", "three.pos")
_SHAPE = (16, 24, 3)
_ROWS = 7
_RACES = 3


def expected_action(robot: int, timestep: int) -> NDArray[np.float32]:
    """Not exact in binary, so that a rounding on the way would show."""
    return np.array([robot + timestep * 0.1, timestep / 3, -robot / 7], np.float32)


def check_performed(robot: int, performed: list[list[float]]) -> None:
    """Every action is the robot's own, bit for bit, and comes when it should.

    But for RobotClient's own race: it merges a chunk into the queue that its control loop empties meanwhile, so that on
    a busy machine an action is performed twice, or one is left out.
    """
    timesteps = {expected_action(robot, timestep).tobytes(): timestep for timestep in range(ACTIONS + _ROWS)}
    found = [timesteps.get(np.array(action, np.float32).tobytes(), "no action of this robot") for action in performed]
    assert len(found) == ACTIONS
    assert all(isinstance(t, int) and abs(t - index) <= _RACES for index, t in enumerate(found)), found


def answer(observation: Observation) -> NDArray[np.float32]:
    """The actions from the observation's timestep on; a torn frame or a foreign one is an error."""
    robot, timestep, _ = (round(float(value)) for value in observation.state)
    assert (observation.images["camera"] == 10 * robot).all()
    assert observation.task == f"task of robot {robot}"
    return np.stack([expected_action(robot, timestep + row) for row in range(_ROWS)])


def robots_policy() -> FunctionPolicy:
    """`answer`, with the length of its actions: RobotClient cannot say it."""
    return FunctionPolicy(answer, "a policy for fake robots", action_dim=len(_JOINTS))


@RobotConfig.register_subclass("fake_of_the_tests")
@dataclass
class FakeRobotConfig(RobotConfig):
    number: int = 0


class FakeRobot(Robot):
    """Remembers the actions that it was sent."""

    config_class = FakeRobotConfig
    name = "fake_of_the_tests"

    def __init__(self, config: FakeRobotConfig) -> None:
        super().__init__(config)
        self.number = config.number
        self.performed: list[list[float]] = []
        self.done = threading.Event()

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(_JOINTS, float), "camera": _SHAPE}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(_JOINTS, float)

    def get_observation(self) -> dict[str, Any]:
        last = max(len(self.performed) - 1, 0)
        state = dict(zip(_JOINTS, (float(self.number), float(last), 0.0), strict=True))
        return {**state, "camera": np.full(_SHAPE, 10 * self.number, np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.performed.append(list(action.values()))
        if len(self.performed) >= ACTIONS:
            self.done.set()
        return action

    is_connected = True
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def disconnect(self) -> None: ...


def make_robot(number: int, folder: Path) -> Commands:
    """A RobotClient with a fake robot, for a process of its own."""
    config = CLIENT_MODULE.RobotClientConfig(
        policy_type="act",
        pretrained_name_or_path="served/whatever",
        robot=FakeRobotConfig(id=str(number), number=number, calibration_dir=folder),
        actions_per_chunk=_ROWS,
        server_address="127.0.0.1:1",
        aggregate_fn_name="latest_only",
        fps=100,
    )

    def run(uri: str) -> list[list[float]]:
        """The first actions that the robot performs."""
        config.server_address = uri.removeprefix("grpc://")
        client = CLIENT_MODULE.RobotClient(config)
        assert client.start(), "the server refused"
        control = threading.Thread(target=client.control_loop, args=(f"task of robot {number}",))
        receiving = threading.Thread(target=client.receive_actions)
        control.start()
        receiving.start()
        assert client.robot.done.wait(WAIT_S), f"only {len(client.robot.performed)} actions came"
        client.stop()
        control.join()
        receiving.join()
        return client.robot.performed[:ACTIONS]

    return {"run": run}
