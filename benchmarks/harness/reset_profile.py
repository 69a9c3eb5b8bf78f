"""Where a LIBERO reset and a step without a frame go, in lerobot's environment and in ours."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np

__all__ = ["Stopwatch", "profile_resets"]

_STEPS = 50


class Stopwatch:
    """Divides wall time among named parts; a part that runs within another is not charged to both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since_s = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the time within to ``name``."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time charged to ``name``."""

        @wraps(function)
        def charged(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return charged

    def take(self) -> dict[str, float]:
        """What was measured since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _charge(self) -> None:
        now_s = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now_s - self._since_s
        self._since_s = now_s


def profile_resets(suite: str, task_id: int, frame_size: tuple[int, int], resets: int = 3) -> dict[str, Any]:
    """Reset and step both environments, the first reset building the simulator.

    Ours comes first, so that its first reset also pays for what a process loads only once: numba's functions, MuJoCo's
    cache of meshes.

    Returns:
        Per environment: ``resets``, seconds by part of each; ``step``, seconds by part of one step with zero actions,
        rendered in lerobot's environment and not in ours.
    """
    from async_delta_inference.client.environments.libero_setup import prepare_libero

    prepare_libero()
    watch = Stopwatch()
    with _watched(watch):
        return {
            "ours": _profile_ours(watch, suite, task_id, frame_size, resets),
            "lerobots": _profile_lerobots(watch, suite, task_id, frame_size, resets),
        }


@contextmanager
def _watched(watch: Stopwatch) -> Iterator[None]:
    """The expensive parts of robosuite under the stopwatch."""
    from libero.libero.envs.bddl_base_domain import BDDLBaseDomain
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.binding_utils import MjRenderContextOffscreen, MjSim

    watched = [
        (BDDLBaseDomain, "_load_model", "building the XML"),
        (MjSim, "from_xml_string", "compiling the model"),
        (MjRenderContextOffscreen, "__init__", "opening the renderer"),
        (MjSim, "render", "rendering"),
        (ControlEnv, "step", "stepping"),
    ]
    originals = [(owner, name, owner.__dict__[name]) for owner, name, _ in watched]
    for owner, name, part in watched:
        original = owner.__dict__[name]
        inner = original.__func__ if isinstance(original, staticmethod | classmethod) else original
        timed: Any = watch.timed(part, inner)
        setattr(owner, name, type(original)(timed) if inner is not original else timed)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _config(suite: str, task_id: int, frame_size: tuple[int, int]) -> Any:
    from lerobot.envs.configs import LiberoEnv

    height, width = frame_size
    return LiberoEnv(task=suite, task_ids=[task_id], observation_height=height, observation_width=width)


def _profile_ours(watch: Stopwatch, suite: str, task_id: int, frame_size: tuple[int, int], resets: int) -> Any:
    from async_delta_inference.client.environments import make_environments

    (environment,) = make_environments(_config(suite, task_id, frame_size))
    action = np.zeros(environment.action_dim, np.float32)
    try:
        return _profile(
            watch,
            lambda seed: environment.reset(environment.episode(0, seed), render=True),
            lambda: environment.step(action, render=False),
            resets,
        )
    finally:
        environment.close()


def _profile_lerobots(watch: Stopwatch, suite: str, task_id: int, frame_size: tuple[int, int], resets: int) -> Any:
    from lerobot.envs.factory import make_env

    with contextlib.redirect_stdout(io.StringIO()):
        (tasks,) = make_env(_config(suite, task_id, frame_size), n_envs=1, use_async_envs=False).values()
    vector = tasks[task_id]
    actions = np.zeros((1, 7), np.float32)
    try:
        return _profile(watch, lambda seed: vector.reset(seed=[seed]), lambda: vector.step(actions), resets)
    finally:
        vector.close()


def _profile(
    watch: Stopwatch, reset: Callable[[int], object], step: Callable[[], object], resets: int
) -> dict[str, Any]:
    watch.take()
    seconds = []
    for episode in range(resets):
        with watch.part("everything else"):
            reset(1000 + episode)
        seconds.append(watch.take())
    with watch.part("everything else"):
        for _ in range(_STEPS):
            step()
    return {"resets": seconds, "step": {name: total / _STEPS for name, total in watch.take().items()}}
