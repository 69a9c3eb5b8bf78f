"""A scripted expert for "pick up X and place it in the basket": pure functions of positions, no simulator.

The expert sees what no policy may see, the true positions of the object and of the basket, and drives the hand
to waypoints with a proportional controller. What it is about to do follows from what a camera and the robot's
state show, so a policy without memory can imitate it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

GRIPPER_OPEN = -1.0
GRIPPER_CLOSED = 1.0


class Phase(IntEnum):
    """What the expert is doing, in order."""

    ABOVE = 0
    DESCEND = 1
    GRASP = 2
    LIFT = 3
    CARRY = 4
    LOWER = 5
    RELEASE = 6


@dataclass(frozen=True)
class ExpertConfig:
    """Waypoints and tolerances of the expert.

    Attributes:
        hover_height_m: height above the object from which the hand descends.
        grasp_height_m: height of the hand above the object's centre when it grasps.
        lift_height_m: how far the object is lifted before it is carried.
        release_drop_m: how far the hand goes down above the basket before it opens.
        grasp_steps: control steps the gripper is given to close.
        tolerance_m: distance at which a waypoint counts as reached.
        gain: action per metre of error; an action of 1 asks the controller for 0.05 m.
    """

    hover_height_m: float = 0.12
    grasp_height_m: float = 0.0
    lift_height_m: float = 0.25
    release_drop_m: float = 0.10
    grasp_steps: int = 12
    tolerance_m: float = 0.015
    gain: float = 10.0


def proportional_action(
    eef_pos: NDArray[np.float64], target: NDArray[np.float64], gripper: float, gain: float
) -> NDArray[np.float32]:
    """Moves the hand towards a target without turning it.

    Args:
        eef_pos: (3,) position of the hand, m.
        target: (3,) wanted position, m.
        gripper: -1 open, 1 closed.
        gain: action per metre.

    Returns:
        float32 (7,): translation in -1..1, no rotation, gripper.
    """
    action = np.zeros(7, dtype=np.float32)
    action[:3] = np.clip(gain * (target - eef_pos), -1.0, 1.0)
    action[6] = gripper
    return action


class PickPlaceExpert:
    """Walks through the phases of one episode."""

    def __init__(self, config: ExpertConfig | None = None) -> None:
        """Starts at the first phase."""
        self.config = config or ExpertConfig()
        self.phase = Phase.ABOVE
        self._steps_in_phase = 0
        self._lift_z_m = 0.0

    def act(
        self, eef_pos: NDArray[np.float64], object_pos: NDArray[np.float64], basket_pos: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Chooses the action for the current positions, each (3,) in metres. Returns float32 (7,)."""
        while self._is_done(eef_pos, object_pos, basket_pos):
            self._enter(Phase(self.phase + 1), object_pos)
        self._steps_in_phase += 1
        target = self._target(eef_pos, object_pos, basket_pos)
        is_closed = Phase.GRASP <= self.phase <= Phase.LOWER
        gripper = GRIPPER_CLOSED if is_closed else GRIPPER_OPEN
        return proportional_action(eef_pos, target, gripper, self.config.gain)

    def _enter(self, phase: Phase, object_pos: NDArray[np.float64]) -> None:
        if phase == Phase.LIFT:
            self._lift_z_m = float(object_pos[2]) + self.config.lift_height_m
        self.phase = phase
        self._steps_in_phase = 0

    def _target(
        self, eef_pos: NDArray[np.float64], object_pos: NDArray[np.float64], basket_pos: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        cfg = self.config
        if self.phase == Phase.ABOVE:
            return object_pos + np.array([0.0, 0.0, cfg.hover_height_m])
        if self.phase in (Phase.DESCEND, Phase.GRASP):
            return object_pos + np.array([0.0, 0.0, cfg.grasp_height_m])
        if self.phase == Phase.LIFT:
            return np.array([eef_pos[0], eef_pos[1], self._lift_z_m])
        if self.phase == Phase.CARRY:
            return np.array([basket_pos[0], basket_pos[1], self._lift_z_m])
        return np.array([basket_pos[0], basket_pos[1], self._lift_z_m - cfg.release_drop_m])

    def _is_done(
        self, eef_pos: NDArray[np.float64], object_pos: NDArray[np.float64], basket_pos: NDArray[np.float64]
    ) -> bool:
        if self.phase == Phase.RELEASE:
            return False
        if self.phase == Phase.GRASP:
            return self._steps_in_phase >= self.config.grasp_steps
        distance_m = np.linalg.norm(self._target(eef_pos, object_pos, basket_pos) - eef_pos)
        return bool(distance_m < self.config.tolerance_m)


class Disturbance:
    """Noise on the executed action: small on every step, and now and then a push that lasts some steps.

    The dataset keeps the expert's clean action, so the policy sees how to come back.
    """

    def __init__(self, rng: np.random.Generator, noise_std: float, push_probability: float, push_size: float) -> None:
        """Draws everything from `rng`, so an episode can be repeated."""
        self._rng = rng
        self._noise_std = noise_std
        self._push_probability = push_probability
        self._push_size = push_size
        self._push = np.zeros(3)
        self._push_steps_left = 0

    def apply(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns a disturbed copy of a (7,) action, within -1..1. The gripper is never disturbed."""
        if self._push_steps_left == 0 and self._rng.random() < self._push_probability:
            self._push = self._rng.uniform(-self._push_size, self._push_size, size=3)
            self._push_steps_left = int(self._rng.integers(3, 8))
        disturbed = action.copy()
        disturbed[:3] += self._rng.normal(0.0, self._noise_std, size=3)
        if self._push_steps_left > 0:
            disturbed[:3] += self._push
            self._push_steps_left -= 1
        return np.clip(disturbed, -1.0, 1.0).astype(np.float32)
