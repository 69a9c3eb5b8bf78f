"""A robot that sees a payload, and LeRobot's own RobotClient with it. Importing this loads lerobot.

LeRobot finds a robot's class by its configuration's name, in a module of that name.
"""

from __future__ import annotations

import logging
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lerobot.async_inference.robot_client as lerobot_client
from lerobot.async_inference.helpers import TimedObservation
from lerobot.robots import Robot, RobotConfig
from lerobot.transport import services_pb2

from async_delta_inference.errors import ProtocolError, SetupRefusedError
from async_delta_inference.robot_client import install
from harness.payloads import PAYLOADS, Payload

__all__ = ["RobotExchange", "StillRobot", "StillRobotConfig"]


@RobotConfig.register_subclass("still_robot_of_the_benchmark")
@dataclass
class StillRobotConfig(RobotConfig):
    """Which payload it sees."""

    payload: str = "libero"


class StillRobot(Robot):
    """Sees the same thing again and again; its actions are named as its state is."""

    config_class = StillRobotConfig
    name = "still_robot_of_the_benchmark"
    is_connected = True
    is_calibrated = True

    def __init__(self, config: StillRobotConfig) -> None:
        super().__init__(config)
        self._features = PAYLOADS[config.payload].features
        seen = PAYLOADS[config.payload].observation()
        state = dict(zip(self._features.state_names, seen.state.tolist(), strict=True))
        self._observation = {**state, **seen.images, "task": seen.task}

    @property
    def observation_features(self) -> dict[str, Any]:
        """As LeRobot's robots say it."""
        return {**self.action_features, **self._features.images}

    @property
    def action_features(self) -> dict[str, Any]:
        """As LeRobot's robots say it."""
        return dict.fromkeys(self._features.state_names, float)

    def get_observation(self) -> dict[str, Any]:
        """At once: what it costs to see is not what is measured."""
        return dict(self._observation)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Nothing moves."""
        return action

    def connect(self, calibrate: bool = True) -> None:
        """Nothing to reach."""

    def calibrate(self) -> None:
        """Nothing to measure."""

    def configure(self) -> None:
        """Nothing to set."""

    def disconnect(self) -> None:
        """Nothing to leave."""


class RobotExchange:
    """One RobotClient at one server, asked for one observation and its answer at a time.

    Args:
        uri: The server's.
        payload: What is seen; its actions are as wide as its state.
        folder: For the robot's calibration, which it has none of.

    Raises:
        SetupRefusedError: The server will not serve it; RobotClient has logged why.
    """

    def __init__(self, uri: str, payload: Payload, folder: Path) -> None:
        install()
        lerobot_client.RobotClient.logger.setLevel(logging.WARNING)
        config = lerobot_client.RobotClientConfig(
            policy_type="act",
            pretrained_name_or_path=payload.null_checkpoint,
            robot=StillRobotConfig(calibration_dir=folder, payload=payload.name.partition("/")[0]),
            actions_per_chunk=payload.chunk[0],
            server_address=uri.removeprefix("grpc://"),
        )
        self._rows = payload.chunk[0]
        self._timestep = 0
        self._client = lerobot_client.RobotClient(config)
        if not self._client.start():
            raise SetupRefusedError(f"RobotClient could not start at {uri}: see above")

    def run(self) -> tuple[int, int]:
        """One exchange: how long `send_observation` took, and the whole until the actions are there, ns.

        Raises:
            ProtocolError: The answer is not to this observation.
        """
        self._timestep += 1
        raw = self._client.robot.get_observation()
        began_ns = time.perf_counter_ns()
        self._client.send_observation(TimedObservation(time.time(), self._timestep, raw, must_go=True))
        sent_ns = time.perf_counter_ns()
        # As RobotClient.receive_actions does it, in whose loop there is no place to look at a clock.
        data = self._client.stub.GetActions(services_pb2.Empty()).data
        actions = pickle.loads(data) if data else []  # noqa: S301 - a server of this run wrote it
        ended_ns = time.perf_counter_ns()
        if [action.get_timestep() for action in actions] != [self._timestep + row for row in range(self._rows)]:
            raise ProtocolError(f"observation {self._timestep} was answered with {len(actions)} other actions")
        return sent_ns - began_ns, ended_ns - began_ns

    def close(self) -> None:
        """End the session."""
        self._client.stop()
