"""``--display_data``: what happens, as it happens, in Rerun, from a thread that the control loop never waits for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.results import ChunkRecord, EpisodeResult, EvaluationResult
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.transport import Observation

__all__ = ["LiveView", "rerun_sink"]

logger = logging.getLogger(__name__)

Sink = Callable[[int, dict[str, Any]], None]
"""Takes a step of the run and what there is to see of it, by path: arrays, images, numbers, texts."""

_WAITING = 64
"""Steps that may wait to be shown; what comes while there are as many is left out."""
_END_S = 5.0


class LiveView(RunObserver):
    """Hands over what there is and goes on: a viewer that is slow, or gone, loses steps and delays none.

    Frames are shown where they were rendered anyway: those that are sent, and all with ``--render=always``.

    Args:
        sink: Called in a thread of its own.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._steps: queue.Queue[tuple[int, dict[str, Any]] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._show, name="live-view", daemon=True)
        self._step = 0
        self._seen: dict[str, Any] = {}
        self.left_out = 0
        """Steps that were not shown."""

    def run_started(self, environments: Sequence[Environment], n_episodes: int) -> None:  # noqa: D102
        if not self._thread.is_alive():
            self._thread.start()

    def episode_started(self, environment: Environment, episode: int) -> None:  # noqa: D102
        self._seen["episode"] = f"{environment.task_group}/{environment.task_id} episode {episode}"
        self._look(environment)

    def chunk_merged(self, chunk: ChunkRecord) -> None:  # noqa: D102
        self._seen["chunks"] = (
            f"asked for before step {chunk.requested_step}, in effect before step {chunk.merged_step}: {chunk.length} "
            f"actions, {chunk.stale} stale, {chunk.aggregated} aggregated"
        )

    def acting(self, action: NDArray[np.float32], queued: int) -> None:  # noqa: D102
        self._seen |= {"action": action.copy(), "queue": float(queued)}
        self._hand_over()
        self._step += 1

    def stepped(self, environment: Environment, outcome: StepResult) -> None:  # noqa: D102
        self._seen["reward"] = float(outcome.reward)
        self._look(environment)

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:  # noqa: D102
        self._seen["success"] = "not known" if result.success is None else str(result.success)
        self._hand_over()

    def run_ended(self, result: EvaluationResult) -> None:  # noqa: D102
        try:
            self._steps.put(None, timeout=_END_S)
        except queue.Full:
            return  # A viewer that hangs: the thread ends with the process.
        if self._thread.is_alive():
            self._thread.join(_END_S)
        if self.left_out:
            logger.warning("%d of %d steps were not shown: the viewer was too slow", self.left_out, self._step)

    def _look(self, environment: Environment) -> None:
        self._seen["observation/state"] = environment.state()
        observation = Observation.empty(environment.features)
        try:
            environment.write_observation(observation)
        except EpisodeError:
            return  # Nothing was rendered for this step.
        self._seen |= {f"observation/images/{name}": image for name, image in observation.images.items()}

    def _hand_over(self) -> None:
        seen, self._seen = self._seen, {}
        try:
            self._steps.put_nowait((self._step, seen))
        except queue.Full:
            self.left_out += 1

    def _show(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                self._sink(*step)
            except Exception:  # Whatever a viewer raises is worth no episode.
                logger.exception("the live view ended")
                self._sink = lambda step, seen: None


def rerun_sink(ip: str | None, port: int | None, save: Path | None) -> Sink:
    """A Rerun viewer that is started here, one that listens elsewhere, or a file for one.

    Args:
        ip: Of the viewer; None: one is started.
        port: Of the viewer.
        save: The ``.rrd`` file.

    Raises:
        ConfigError: Rerun is not installed.
    """
    try:
        rr: Any = import_module("rerun")
    except ModuleNotFoundError as exc:
        raise ConfigError("--display_data needs Rerun: pip install 'async-delta-inference[viz]'") from exc
    rr.init("async_delta_inference")
    if save is not None:
        rr.save(str(save))
    elif ip is not None and port is not None:
        rr.connect_grpc(url=f"rerun+http://{ip}:{port}/proxy")
    else:
        rr.spawn()

    def sink(step: int, seen: dict[str, Any]) -> None:
        rr.set_time("step", sequence=step)
        for path, value in seen.items():
            if isinstance(value, str):
                rr.log(path, rr.TextLog(value))
            elif isinstance(value, np.ndarray) and value.ndim == 3:
                rr.log(path, rr.Image(value))
            else:
                rr.log(path, rr.Scalars(value))

    return sink
