"""What the policy calls what a session observes: renamed as the user says, and LeRobot's nameless camera."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from async_delta_inference.checkpoint_config import ENVIRONMENT_STATE, IMAGE, STATE, is_camera
from async_delta_inference.errors import FeatureMismatchError
from async_delta_inference.transport.messages import ObservationFeatures

__all__ = ["InputNames", "input_names", "vectors_of"]

SINGLE_CAMERA = "image"
"""What a session calls the camera that LeRobot calls ``observation.image``, when the simulator has no name for it."""


@dataclass(frozen=True)
class InputNames:
    """Where a session's observation goes.

    Args:
        cameras: Camera of the session to the policy's input.
        vectors: The policy's input to its place in the session's state.
    """

    cameras: Mapping[str, str]
    vectors: Mapping[str, slice]


def input_names(features: ObservationFeatures, taken: Iterable[str], rename_map: Mapping[str, str]) -> InputNames:
    """Where an observation of these features goes, as lerobot-eval would have it.

    Args:
        features: Of the session.
        taken: The policy's inputs, by name.
        rename_map: LeRobot's name of an observation to the policy's.

    Raises:
        FeatureMismatchError: The cameras do not fit; the message names both sides and the flag.
    """
    taken = set(taken)
    cameras = {name: _camera_key(name, taken, rename_map) for name in features.images}
    expected, given = {key for key in taken if is_camera(key)}, set(cameras.values())
    # LeRobot's own rule: one side may have cameras that the other knows nothing of.
    if not rename_map and not (given <= expected or expected <= given):
        raise FeatureMismatchError(
            f"the environment gives the cameras {_listed(given)}, the policy takes {_listed(expected)}: rename with "
            f'--rename_map=\'{{"{min(given - expected)}": "{min(expected - given)}"}}\', choose others with --env '
            "flags, or use a checkpoint trained on these"
        )
    if len(given) != len(cameras):
        raise FeatureMismatchError(f"--rename_map gives two cameras one name: {cameras}")
    vectors = {rename_map.get(key, key): part for key, part in vectors_of(features).items()}
    return InputNames(cameras, vectors)


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys)) or "none"


def _camera_key(name: str, taken: set[str], rename_map: Mapping[str, str]) -> str:
    ours = f"{IMAGE}s.{name}"
    if ours in rename_map:
        return rename_map[ours]
    if name == SINGLE_CAMERA and IMAGE in rename_map:
        return rename_map[IMAGE]
    return IMAGE if name == SINGLE_CAMERA and ours not in taken and IMAGE in taken else ours


def vectors_of(features: ObservationFeatures) -> dict[str, slice]:
    """LeRobot's names of the parts of a session's state, and where they are in it: the robot's comes first."""
    robot, whole = features.robot_dim, features.state_dim
    parts = {STATE: slice(0, robot), ENVIRONMENT_STATE: slice(robot, whole)}
    return {key: part for key, part in parts.items() if part.start < part.stop}
