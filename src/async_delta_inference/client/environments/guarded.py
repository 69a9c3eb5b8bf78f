"""`GuardedEnvironment`: whatever comes out of a simulator is one error, that says which and what it did."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.errors import AsyncDeltaError, EpisodeError
from async_delta_inference.transport import Observation

__all__ = ["GuardedEnvironment", "simulator_errors"]

logger = logging.getLogger(__name__)


class GuardedEnvironment(Environment):
    """Another environment, whose every exception is an `EpisodeError`.

    Simulators are other people's code, and some of them end the program (``SystemExit``) when they cannot go on.

    Args:
        environment: Any. Its own attributes can be read from this one, too.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __getattr__(self, name: str) -> Any:
        # Not before there is one: copying and pickling look for methods of theirs first.
        if name == "_environment":
            raise AttributeError(name)
        return getattr(self._environment, name)

    @property
    def name(self) -> str:
        """Group and index, for messages."""
        return f"{self.task_group}/{self.task_id}"

    def episode(self, episode: int, seed: int | None) -> EpisodeSpec:  # noqa: D102
        with simulator_errors(self.name, "episode"):
            return self._environment.episode(episode, seed)

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:  # noqa: D102
        with simulator_errors(self.name, "reset"):
            self._environment.reset(spec, render=render)

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:  # noqa: D102
        with simulator_errors(self.name, "step"):
            return self._environment.step(action, render=render)

    def state(self) -> NDArray[np.float32]:  # noqa: D102
        with simulator_errors(self.name, "state"):
            return self._environment.state()

    def write_observation(self, observation: Observation) -> None:  # noqa: D102
        with simulator_errors(self.name, "write_observation"):
            self._environment.write_observation(observation)

    def hold_action(self) -> NDArray[np.float32]:  # noqa: D102
        with simulator_errors(self.name, "hold_action"):
            return self._environment.hold_action()

    def video_frame(self) -> NDArray[np.uint8]:  # noqa: D102
        with simulator_errors(self.name, "video_frame"):
            return self._environment.video_frame()

    def close(self) -> None:
        """Release the simulator; that it failed in that is a warning, since its episodes are over."""
        try:
            with simulator_errors(self.name, "close"):
                self._environment.close()
        except EpisodeError as exc:
            logger.warning("%s", exc)


class simulator_errors:  # noqa: N801 - used as the functions of contextlib are
    """Context manager: an interrupt stays one, and an error of ours says already what it is about.

    Not made by ``contextlib.contextmanager``, through which a `StopIteration` finds a way out.

    Args:
        name: Of the environment.
        doing: What it does within the block.

    Raises:
        EpisodeError: Anything else came out of the block.
    """

    def __init__(self, name: str, doing: str) -> None:
        self._name = name
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None and not isinstance(exc, (KeyboardInterrupt, AsyncDeltaError)):
            reason = " ".join(f"{type(exc).__name__}: {exc}".split()).rstrip(":")
            raise EpisodeError(f"{self._name} failed in {self._doing}: {reason}") from exc
