"""Environment and checkpoint side by side, and what differs from what the policy was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.checkpoint_config import IMAGE, CheckpointConfig
from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.policy_flags import PolicyFlags
from async_delta_inference.client.run.checkpoint import check_checkpoint
from async_delta_inference.errors import FeatureMismatchError
from async_delta_inference.input_names import input_names

__all__ = ["Finding", "Statistics", "action_bounds", "look_at", "statistics_of"]

Statistics = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""By the policy's name of an input or output: ``mean``, ``std``, ``min`` and ``max``, as far as they are known."""

FAR_IN_DEVIATIONS = 10.0
"""A state's element this many standard deviations from the mean was hardly seen in training: swapped, missing, or in
another unit."""

_NORMALIZER = "policy_preprocessor*normalizer*.safetensors"


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Args:
        what: Camera, state, ...
        environment: What the environment gives.
        checkpoint: What the policy was trained with.
        warning: What is wrong, and the flag that mends it; empty for nothing.
    """

    what: str
    environment: str
    checkpoint: str
    warning: str = ""


def look_at(
    flags: PolicyFlags, environment: Environment, checkpoint: Path, bounds: tuple[Any, Any] | None = None
) -> list[Finding]:
    """Compare an environment, which was reset, with a checkpoint.

    Args:
        flags: What the user says of the policy.
        environment: Its current state is compared with the training's statistics.
        checkpoint: Folder with ``config.json``.
        bounds: Lowest and highest actions (A,) that the environment takes; None where it does not say.

    Raises:
        ConfigError: The checkpoint cannot be read.
    """
    try:
        config = check_checkpoint(checkpoint, flags, environment.features, environment.action_dim)
    except FeatureMismatchError as exc:
        return [Finding("fit", "", "", str(exc))]
    statistics = statistics_of(checkpoint)
    return [
        *_cameras(flags, environment, config),
        *_states(flags, environment, config, statistics),
        _actions(environment, statistics, bounds),
        Finding("control rate", f"{environment.fps:g} Hz", "n/a: a checkpoint does not say it"),
        _chunk(flags, config),
    ]


def action_bounds(environment: Environment) -> tuple[Any, Any] | None:
    """Lowest and highest actions (A,) that a simulator which was reset takes; None where it does not say."""
    space = getattr(getattr(environment, "_env", None), "action_space", None)
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    return low, high


def statistics_of(checkpoint: Path) -> Statistics:
    """The training's statistics, from the checkpoint's normaliser; empty where it has none."""
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for file in sorted(checkpoint.glob(_NORMALIZER)):
        for key, value in _tensors(file).items():
            name, _, statistic = key.rpartition(".")
            if statistic in ("mean", "std", "min", "max"):
                found.setdefault(name, {})[statistic] = value
    return found


def _tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        return {}
    try:
        return dict(load_file(file))
    except (OSError, ValueError, SafetensorError):
        return {}  # What is not known is not compared.


def _cameras(flags: PolicyFlags, environment: Environment, config: CheckpointConfig) -> list[Finding]:
    names = input_names(environment.features, config.inputs, flags.rename_map).cameras
    findings = []
    for camera, (height, width, channels) in environment.features.image_shapes:
        key = names[camera]
        declared = config.inputs.get(key)
        renamed = "" if key == f"{IMAGE}s.{camera}" else f" as {key}"
        trained = "not used" if declared is None else "x".join(str(n) for n in (*declared[1:], declared[0]))
        warning = ""
        if declared is not None and declared != (channels, height, width):
            warning = (
                "another size than the policy was trained with, and nobody resizes it: set "
                f"--env.observation_height={declared[1]} --env.observation_width={declared[2]} where the environment "
                "has them"
            )
        findings.append(Finding(f"camera {camera}{renamed}", f"{height}x{width}x{channels}", trained, warning))
    return findings


def _states(
    flags: PolicyFlags, environment: Environment, config: CheckpointConfig, statistics: Statistics
) -> list[Finding]:
    """The robot's state, and the environment's where there is one."""
    names, state = environment.features.state_names, environment.state()
    vectors = input_names(environment.features, config.inputs, flags.rename_map).vectors
    return [
        _state(key, names[part], state[part], config.inputs.get(key), statistics.get(key, {}))
        for key, part in vectors.items()
    ]


def _state(
    key: str,
    names: Sequence[str],
    state: NDArray[np.float32],
    declared: tuple[int, ...] | None,
    known: Mapping[str, NDArray[np.float32]],
) -> Finding:
    what = key.removeprefix("observation.")
    trained = "not declared" if declared is None else f"{declared[0]} elements"
    mean, deviation = known.get("mean"), known.get("std")
    if mean is None or deviation is None or mean.shape != state.shape:
        return Finding(what, f"{len(state)} elements", trained + ", no statistics")
    # What hardly moved in training may move a little here.
    distance = np.abs(state - mean) / np.maximum(deviation, 1e-3 + 1e-3 * np.abs(mean))
    far = [i for i in np.argsort(-distance) if distance[i] > FAR_IN_DEVIATIONS]
    warning = ""
    if far:
        worst = ", ".join(
            f"{names[i]} is {state[i]:.3g}, in training {mean[i]:.3g} +- {deviation[i]:.3g} "
            f"({distance[i]:.0f} deviations)"
            for i in far[:3]
        )
        warning = (
            f"{worst}: is an element swapped or missing, or in another unit (degrees, quaternion)? See --env flags"
        )
    return Finding(what, f"{len(state)} elements, at most {distance.max():.1f} deviations away", trained, warning)


def _actions(environment: Environment, statistics: Statistics, bounds: tuple[Any, Any] | None) -> Finding:
    known = statistics.get("action", {})
    lowest, highest = known.get("min"), known.get("max")
    trained = "no statistics" if lowest is None or highest is None else _range(lowest, highest)
    if bounds is None:
        return Finding("action", f"{environment.action_dim} elements", trained)
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), environment.action_dim) for bound in bounds)
    warning = ""
    if lowest is not None and highest is not None and lowest.shape == low.shape:
        slack = 0.05 * np.where(np.isfinite(high - low), high - low, 0.0)
        outside = np.flatnonzero((lowest < low - slack) | (highest > high + slack))
        if len(outside):
            i = int(outside[0])
            warning = (
                f"element {i} was {lowest[i]:.3g} to {highest[i]:.3g} in training, and the environment takes "
                f"{low[i]:.3g} to {high[i]:.3g}: another unit or kind of control? See --env flags"
            )
        elif (flat := _barely_used(lowest, highest, low, high)) is not None:
            warning = (
                f"all actions of training lie within {flat:.1%} of what the environment takes: another unit, or "
                "relative instead of absolute? See --env flags"
            )
    return Finding("action", f"{environment.action_dim} elements, {_range(low, high)}", trained, warning)


def _barely_used(lowest: NDArray[Any], highest: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> float | None:
    """The widest part of the environment's range that training used, where that is next to nothing."""
    span = high - low
    if not np.isfinite(span).all() or not (span > 0).all():
        return None
    used = float(((highest - lowest) / span).max())
    return used if used < 0.02 else None


def _range(low: NDArray[Any], high: NDArray[Any]) -> str:
    return f"{float(np.min(low)):.3g} to {float(np.max(high)):.3g}"


def _chunk(flags: PolicyFlags, config: CheckpointConfig) -> Finding:
    usual = config.actions_per_inference
    asked = flags.actions_per_chunk or usual
    warning = ""
    longest = config.chunk_size or config.n_action_steps
    if asked is not None and longest is not None and asked > longest:
        warning = f"a chunk has {longest} actions at the most: set --actions_per_chunk={longest}"
    return Finding("chunk", f"{asked if asked is not None else 'n/a'} asked for", f"{usual or 'n/a'} executed", warning)
