"""`prove_frames`: whether an environment goes on alike when frames that nobody looks at are not rendered.

It is tried before it is relied on: some dozen steps with every frame, and the same with a few, by simulators of their
own. States, rewards, ends, success and the frames that somebody looks at must be equal bit for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.global_randomness import global_generators_of
from async_delta_inference.client.environments.observation import camera_images, state_vector
from async_delta_inference.client.environments.unseen_frames import frames_unseen, looks_taken

__all__ = ["FrameProof", "prove_frames"]

logger = logging.getLogger(__name__)

STEPS = 32
_FEWEST_STEPS, _LONGEST_S = 12, 30.0
"""A simulator of seconds a step is tried for less."""
_SPEC = EpisodeSpec("trial", 0, 0, seed=1000)


@dataclass(frozen=True)
class FrameProof:
    """What came of it.

    Args:
        skips: Whether frames that nobody looks at may be left out.
        repeatable: Whether the same seed and actions gave the same twice; None where it was not found out.
        reason: Why not, in words; empty where they may, or where there is nothing to leave out.
        speedup: How many times faster a step without its frames was; NaN where there is none.
    """

    skips: bool
    repeatable: bool | None = None
    reason: str = ""
    speedup: float = float("nan")


@dataclass
class _Record:
    """One run of some steps.

    Args:
        told: By step: what must be equal with and without frames, by its name.
        steps_s: Seconds that each step took.
        seen: Whether that step's frames were looked at.
    """

    told: list[dict[str, Any]]
    steps_s: list[float]
    seen: list[bool]


def prove_frames(
    build: Callable[[], Any], convert: Callable[[Any], Mapping[str, Any]], options: Mapping[str, Any]
) -> FrameProof:
    """Try an environment with and without the frames that nobody looks at.

    The random generators of this process are as before when it returns.

    Args:
        build: Makes a simulator, a gymnasium environment with a Box of actions.
        convert: From what it observes to LeRobot's layout.
        options: Of its resets.
    """
    before = looks_taken()
    try:
        always = _run(build, convert, options, unseen=False, steps=STEPS)
        if looks_taken() == before:
            return FrameProof(False)
        seldom = _run(build, convert, options, unseen=True, steps=len(always.steps_s))
        differs = _difference(always, seldom)
        if differs:
            again = _run(build, convert, options, unseen=False, steps=len(always.steps_s))
            repeated = _difference(always, again)
            if repeated:
                return FrameProof(False, False, f"it is not repeatable: {repeated} with the same seed and actions")
            return FrameProof(False, True, f"{differs} where frames are left out")
    except KeyboardInterrupt:
        raise
    # Whatever it raises, SystemExit included, it will raise again in an episode, where it belongs.
    except BaseException as exc:  # noqa: BLE001
        looked = looks_taken() > before
        return FrameProof(False, None, f"it failed when it was tried: {type(exc).__name__}: {exc}" if looked else "")
    return FrameProof(True, True, speedup=_speedup(always, seldom))


def _run(
    build: Callable[[], Any],
    convert: Callable[[Any], Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    unseen: bool,
    steps: int,
) -> _Record:
    record = _Record([], [], [])
    began_s, episode = time.monotonic(), 0
    # A simulator may draw from the process's generators, and an episode brings its own state of them.
    with global_generators_of(_SPEC):
        env = build()
        try:
            _reset(env, convert, options, record, episode)
            for step in range(steps):
                if unseen is False and step >= _FEWEST_STEPS and time.monotonic() - began_s > _LONGEST_S:
                    break
                seen = step % 7 in (2, 3, 6)
                step_s = time.perf_counter()
                with frames_unseen(unseen and not seen):
                    raw, reward, terminated, truncated, info = env.step(_action(env.action_space, step))
                record.steps_s.append(time.perf_counter() - step_s)
                told = {"rewards": reward, "ends": (bool(terminated), bool(truncated)), "successes": _said(info)}
                record.seen.append(seen)
                _note(record, convert(raw), told, seen)
                if terminated or truncated:
                    episode += 1
                    _reset(env, convert, options, record, episode)
        finally:
            env.close()
    return record


def _reset(env: Any, convert: Callable[[Any], Mapping[str, Any]], options: Any, record: _Record, episode: int) -> None:
    assert _SPEC.seed is not None
    raw, _ = env.reset(seed=_SPEC.seed + episode, options=dict(options))
    _note(record, convert(raw), {}, True)


def _note(record: _Record, observation: Mapping[str, Any], told: dict[str, Any], seen: bool) -> None:
    told["states"] = state_vector(observation).tobytes()
    if seen:
        told["frames"] = {camera: image.tobytes() for camera, image in camera_images(observation).items()}
    record.told.append({name: value if name == "frames" else repr(value) for name, value in told.items()})


def _said(info: Any) -> list[Any]:
    return [info.get(key) for key in ("is_success", "success", "succeed")] if isinstance(info, Mapping) else [info]


def _action(space: Any, step: int) -> NDArray[Any]:
    """The same for the same step; of a space without bounds, as if it had those of a unit."""
    low, high = np.clip(space.low, -1e3, 1e3), np.clip(space.high, -1e3, 1e3)
    unbounded = ~(np.isfinite(space.low) & np.isfinite(space.high))
    low, high = np.where(unbounded, -1.0, low), np.where(unbounded, 1.0, high)
    return np.random.default_rng((7, step)).uniform(low, high).astype(space.dtype)


def _difference(one: _Record, other: _Record) -> str:
    """What is not equal, in words; empty where everything is."""
    if len(one.told) != len(other.told):
        return "episodes differ in length"
    for left, right in zip(one.told, other.told, strict=True):
        for name in left:
            if left[name] != right.get(name):
                return f"its {name} differ"
    return ""


def _speedup(always: _Record, seldom: _Record) -> float:
    unseen = [i for i, seen in enumerate(seldom.seen) if not seen]
    if not unseen:
        return float("nan")
    with_s, without_s = (float(np.median([record.steps_s[i] for i in unseen])) for record in (always, seldom))
    return with_s / without_s if without_s else float("nan")
