"""``--record_dataset``, read again by LeRobot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from control_run import Run
from numpy.typing import NDArray
from stub_environment import SOLVED, StubEnvironment

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import Observation, ObservationFeatures

SIDE = 64


class Seen(StubEnvironment):
    """Its frames are large enough for a video, and their brightness is the step."""

    def __init__(self) -> None:
        super().__init__(max_episode_steps=20, outcomes={12: SOLVED})
        self.features = ObservationFeatures(("step", "episode"), {"camera": (SIDE, SIDE, 3)})
        self.fps = 20.0

    def write_observation(self, observation: Observation) -> None:
        super().write_observation(observation)
        observation.images["camera"][:] = 10 * self._step


def test_lerobot_reads_the_episodes(run: Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("lerobot.datasets")
    run.environments = [Seen()]
    root = tmp_path / "dataset"
    result = run(n_episodes=2, record_dataset=root)
    dataset = datasets.LeRobotDataset("local/dataset", root=root)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 24, 20)
    assert all(all(rendered) for rendered in run.environments[0].rendered)
    actions = np.concatenate([episode.actions for episode in result.episodes])
    for step in (0, 5, 11, 12, 23):
        frame = dataset[step]
        assert frame["observation.state"].tolist() == [step % 12, step // 12]
        np.testing.assert_array_equal(frame["action"].numpy(), actions[step])
        assert frame["task"] == "do nothing"
        assert bool(frame["next.done"]) == (step % 12 == 11)
        brightness = 255 * float(frame["observation.images.camera"].mean())
        assert brightness == pytest.approx(10 * (step % 12), abs=4)


def test_recording_changes_no_episode(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lerobot.datasets")
    found: list[NDArray[np.float32]] = []
    for flags in ({}, {"record_dataset": tmp_path / "dataset"}):
        run.environments = [Seen()]
        found.append(run.episode(inference_delay="2", **flags).actions)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_folder_that_exists_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        run.client(record_dataset=tmp_path)
    with pytest.raises(ConfigError, match="--record_dataset and --resume"):
        run.client(record_dataset=tmp_path / "new", resume="true")


def test_a_dataset_that_cannot_be_written_ends_no_run(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = pytest.importorskip("lerobot.datasets")
    run.environments = [Seen()]
    client = run.client(n_episodes=2, record_dataset=tmp_path / "dataset")

    def fails(self: object, frame: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.LeRobotDataset, "add_frame", fails)
        assert len(client.run().episodes) == 2
    assert list(client.unwritten) == [tmp_path / "dataset"]
    assert caplog.text.count("No space left") == 1
