"""``--record_dataset``: the episodes as a LeRobotDataset, which LeRobot's own tools read, show and train on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.errors import ConfigError
from async_delta_inference.input_names import vectors_of
from async_delta_inference.transport import Observation
from async_delta_inference.transport.messages import ENVIRONMENT_STATE_PREFIX

__all__ = ["DatasetRecorder"]

_IMAGES, _ACTION, _REWARD, _DONE = "observation.images.", "action", "next.reward", "next.done"


class DatasetRecorder(RunObserver):
    """Writes what the policy is shown and what is done, step by step: every frame is rendered for it.

    Features: ``observation.images.<camera>`` (videos), ``observation.state`` and ``observation.environment_state`` as
    far as there are such, ``action``, ``next.reward``, ``next.done``; the task is the environment's description.

    Args:
        folder: Of the run, which keeps account of what could not be written.
        root: Of the dataset; must not exist.

    Raises:
        ConfigError: It exists.
    """

    def __init__(self, folder: OutputFolder, root: Path) -> None:
        if root.exists():
            raise ConfigError(f"--record_dataset={root} exists already: a dataset is written once, give another folder")
        self._folder = folder
        self._root = root
        self._dataset: Any = None
        self._seen: list[Observation] = []
        self._failed = False

    def run_started(self, environments: Sequence[Environment], n_episodes: int) -> None:
        """Make the dataset.

        Raises:
            ConfigError: LeRobot's package for datasets is missing.
        """
        try:
            from lerobot.datasets import LeRobotDataset
        except ImportError as exc:
            raise ConfigError(
                f"--record_dataset needs LeRobot's datasets: pip install 'lerobot[dataset]' ({exc})"
            ) from exc

        def create() -> None:
            self._dataset = LeRobotDataset.create(
                f"local/{self._root.name}",
                fps=round(environments[0].fps),
                features=_features(environments[0]),
                root=self._root,
            )

        self._attempt(create)

    def episode_started(self, environment: Environment, episode: int) -> None:  # noqa: D102
        self._seen = []
        self._look(environment)

    def stepped(self, environment: Environment, outcome: StepResult) -> None:  # noqa: D102
        self._look(environment)

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:  # noqa: D102
        seen, self._seen = self._seen, []
        if not self._failed:
            self._attempt(lambda: self._save(environment, result, seen))

    def run_ended(self, result: EvaluationResult) -> None:
        """Write the dataset's end: without it nothing can read it."""
        if self._dataset is None:
            return
        if self._failed:  # That was told; what came before it can be read, with luck.
            with suppress(Exception):
                self._dataset.finalize()
        else:
            self._attempt(self._dataset.finalize)

    def _look(self, environment: Environment) -> None:
        if self._failed:
            return
        observation = Observation.empty(environment.features)
        environment.write_observation(observation)
        self._seen.append(observation)

    def _save(self, environment: Environment, result: EpisodeResult, seen: Sequence[Observation]) -> None:
        for step, observation in enumerate(seen[: result.length]):
            frame: dict[str, Any] = {f"{_IMAGES}{name}": image for name, image in observation.images.items()}
            frame |= {key: observation.state[part] for key, part in vectors_of(environment.features).items()}
            frame |= {
                _ACTION: np.asarray(result.actions[step], np.float32),
                _REWARD: _one(result.rewards[step], np.float32),
                _DONE: _one(step == result.length - 1, np.bool_),
                "task": environment.task_description,
            }
            self._dataset.add_frame(frame)
        # In this process: a pool would be forked from one that has threads.
        self._dataset.save_episode(parallel_encoding=False)

    def _attempt(self, write: Any) -> None:
        self._failed = not self._folder.attempt(self._root, write) or self._failed


def _one(value: object, dtype: Any) -> NDArray[Any]:
    return np.array([value], dtype)


def _features(environment: Environment) -> dict[str, dict[str, Any]]:
    """As LeRobotDataset declares them."""
    seen = environment.features
    features: dict[str, dict[str, Any]] = {
        f"{_IMAGES}{name}": {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
        for name, shape in seen.images.items()
    }
    actions = [f"action_{i}" for i in range(environment.action_dim)]
    for key, part in vectors_of(seen).items():
        names = [name.removeprefix(ENVIRONMENT_STATE_PREFIX) for name in seen.state_names[part]]
        features[key] = {"dtype": "float32", "shape": (len(names),), "names": names}
    return features | {
        _ACTION: {"dtype": "float32", "shape": (environment.action_dim,), "names": actions},
        _REWARD: {"dtype": "float32", "shape": (1,), "names": None},
        _DONE: {"dtype": "bool", "shape": (1,), "names": None},
    }
