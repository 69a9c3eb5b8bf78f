"""What a LeRobot checkpoint's ``config.json`` says, in today's layout or an older one, read without LeRobot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from async_delta_inference.errors import ConfigError

__all__ = ["CheckpointConfig", "read_checkpoint_config"]

IMAGE = "observation.image"
"""LeRobot's name of a single camera; others are called ``observation.images.<camera>``."""
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
EMPTY_CAMERA = "observation.images.empty_camera_"
"""What a policy calls cameras that it fills in by itself."""

_LARGEST_BYTES = 1 << 20
_OLD_LAYOUTS = {"input_shapes": "LeRobot of 2024", "features": "a LeRobot before 0.1"}


@dataclass(frozen=True)
class CheckpointConfig:
    """The part of a policy's configuration that says how to use it.

    Args:
        policy_type: LeRobot's name of the policy class; empty where the file does not say.
        inputs: Name to shape of what the policy takes, images as (channels, height, width); without cameras that it
            fills in by itself.
        action_dim: Length of an action; None where the file does not say.
        n_obs_steps: Successive observations that one inference looks at.
        n_action_steps: Actions that lerobot-eval executes of a chunk; None where the file does not say.
        chunk_size: Actions of a whole chunk; None where the policy has no such word.
        raw: The file's content in today's layout, ``n_action_steps`` and all.
        is_old: Whether the file was of an older layout, which LeRobot itself does not read.
    """

    policy_type: str
    inputs: Mapping[str, tuple[int, ...]]
    action_dim: int | None
    n_obs_steps: int = 1
    n_action_steps: int | None = None
    chunk_size: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    is_old: bool = False

    @property
    def cameras(self) -> dict[str, tuple[int, ...]]:
        """The inputs that are images."""
        return {key: shape for key, shape in self.inputs.items() if is_camera(key)}

    @property
    def pads_state(self) -> bool:
        """Whether the policy pads a state to a length of its own, so that the declared one does not matter."""
        return "max_state_dim" in self.raw

    @property
    def fills_in_cameras(self) -> bool:
        """Whether the policy can do without some of its cameras."""
        return "empty_cameras" in self.raw or self.policy_type == "groot"

    @property
    def prefix_lengths(self) -> tuple[int, int]:
        """How many executed and how many coming actions the policy wants to be told of; 0 and 0 for most."""
        past, future = self.raw.get("length_prefix_past"), self.raw.get("length_prefix_future")
        return (past, future) if type(past) is int and type(future) is int else (0, 0)

    @property
    def executes_one_action(self) -> bool:
        """Whether every action needs an inference of its own: temporal ensembling, or no queue of actions at all."""
        return self.raw.get("temporal_ensemble_coeff") is not None or self.policy_type == "gaussian_actor"

    @property
    def actions_per_inference(self) -> int | None:
        """How many actions lerobot-eval executes before it asks again; None where the file does not say."""
        if self.executes_one_action:
            return 1
        if self.policy_type == "tdmpc":
            repeats = _count(self.raw.get("n_action_repeats")) or 1
            return repeats if repeats > 1 else self.n_action_steps or 1
        if self.policy_type == "vqbet":
            return _count(self.raw.get("action_chunk_size")) or self.n_action_steps
        return self.n_action_steps or self.chunk_size


def is_camera(key: str) -> bool:
    """Whether LeRobot's name of an input is a camera's."""
    return key == IMAGE or key.startswith(f"{IMAGE}s.")


def read_checkpoint_config(file: Path, overrides: Mapping[str, str] | None = None) -> CheckpointConfig:
    """Read ``config.json``.

    Args:
        file: The file.
        overrides: Values that the user gives instead of the file's.

    Raises:
        ConfigError: It cannot be read, or is no policy's configuration; one line that says what is wrong with it.
    """
    try:
        with file.open("rb") as opened:
            raw = json.loads(opened.read(_LARGEST_BYTES))
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the checkpoint's {file} cannot be read: {exc}") from exc
    if not isinstance(raw, dict):
        raise ConfigError(f"the checkpoint's {file} is not a policy's configuration")
    is_old = "input_shapes" in raw
    written_by = next((who for key, who in _OLD_LAYOUTS.items() if key in raw), "an unknown version of LeRobot")
    try:
        raw = _of_today(raw) | {name: _value(text) for name, text in (overrides or {}).items()}
        inputs, outputs = _shapes(raw, "input_features"), _shapes(raw, "output_features")
    except (TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"the checkpoint's {file} was written by {written_by} and cannot be used: {exc}") from exc
    action = outputs.get("action")
    return CheckpointConfig(
        policy_type=str(raw.get("type") or ""),
        inputs={key: shape for key, shape in inputs.items() if not key.startswith(EMPTY_CAMERA)},
        action_dim=action[0] if action is not None and len(action) == 1 and action[0] > 0 else None,
        n_obs_steps=_count(raw.get("n_obs_steps")) or 1,
        n_action_steps=_count(raw.get("n_action_steps")),
        chunk_size=_count(raw.get("chunk_size")),
        raw=raw,
        is_old=is_old,
    )


def _of_today(raw: dict[str, Any]) -> dict[str, Any]:
    """The same in today's layout: before 2025 shapes and normalisation modes stood in dictionaries of their own."""
    if "input_shapes" not in raw:
        return raw
    old = dict(raw)
    features = {side: old.pop(f"{side}_shapes", None) or {} for side in ("input", "output")}
    modes = {side: old.pop(f"{side}_normalization_modes", None) or {} for side in ("input", "output")}
    mapping = {}
    for side, shapes in features.items():
        old[f"{side}_features"] = {key: {"type": _kind(key), "shape": list(shape)} for key, shape in shapes.items()}
        for key, mode in modes[side].items():
            mapping[_kind(key)] = str(mode).upper()
    return {**old, **({"normalization_mapping": mapping} if mapping else {})}


def _kind(key: str) -> str:
    if is_camera(key):
        return "VISUAL"
    return {"action": "ACTION", ENVIRONMENT_STATE: "ENV"}.get(key, "STATE")


def _shapes(raw: Mapping[str, Any], name: str) -> dict[str, tuple[int, ...]]:
    features = raw.get(name)
    if features is None:
        return {}
    if not isinstance(features, dict):
        raise TypeError(f"its {name} are a {type(features).__name__}, not a dictionary by name")
    shapes = {}
    for key, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise TypeError(f"{name} say the shape of {key} is {shape}")
        shapes[key] = tuple(shape)
    return shapes


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
