"""Frames that travel as bytes become, on the policy's device, what LeRobot's pipeline makes of them, bit for bit.

The device is the CPU here; `tests/gpu` has the same on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_act import begin, observe, request, spec

from async_delta_inference.server_adapter.device import DevicePreparation
from async_delta_inference.server_adapter.image_tables import look_up
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy, surroundings
from async_delta_inference.server_adapter.lerobot.surroundings import Surroundings


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_every_pixel_is_its_tables_entry(height: int, width: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (height, width, channels), np.uint8)
    table = rng.normal(size=(channels, 256)).astype(np.float32)
    found = look_up(torch.from_numpy(frame), torch.from_numpy(table)).numpy()
    expected = np.stack([table[channel][frame[:, :, channel]] for channel in range(channels)])[None]
    assert found.flags.c_contiguous
    assert found.tobytes() == expected.tobytes()


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has policies on the CPU given their frames as one on a GPU is."""
    monkeypatch.setattr(
        surroundings,
        "_preparation",
        lambda loaded, names, tables: DevicePreparation(names.cameras, names.vectors, tables),
    )


def test_the_policy_is_given_the_bits_of_lerobots_pipeline(checkpoint: Path, as_on_a_device: None) -> None:
    policy = LeRobotPolicy()
    session = policy.open(spec(checkpoint))
    assert isinstance(session.around.prepare, DevicePreparation)
    observation = observe(3)
    batch, finished = session.around.prepare(observation, observation.task)
    found = session.around.preprocess(batch, finished)
    expected = _by_the_pipeline(session.around, observation)
    assert set(found) == set(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[key].numpy().tobytes() == value.numpy().tobytes(), key
    session.close()


def _by_the_pipeline(around: Surroundings, observation: Any) -> dict[str, Any]:
    images = {
        around.names.cameras[name]: torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / np.float32(255))[
            None
        ]
        for name, image in observation.images.items()
    }
    state = {key: torch.from_numpy(observation.state[None, part]) for key, part in around.names.vectors.items()}
    result: dict[str, Any] = around.processors[0]({**images, **state, "task": [observation.task]})
    return result


def test_what_was_given_stays_when_the_slot_is_written_again(checkpoint: Path, as_on_a_device: None) -> None:
    policy = LeRobotPolicy()
    session = policy.open(spec(checkpoint))
    observation = observe(3)
    for image in observation.images.values():
        image.setflags(write=True)
    _, finished = session.around.prepare(observation, "")
    before = {key: value.clone() for key, value in finished.items()}
    for image in observation.images.values():
        image[:] = 0
    session.around.prepare(observe(4), "")
    assert all(torch.equal(finished[key], before[key]) for key in before)
    session.close()


def test_answers_are_those_of_the_other_way(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for _ in range(2):
        policy = LeRobotPolicy()
        session = policy.open(spec(checkpoint))
        begin(session)
        answers.append([policy.infer([request(session, observe(timestep))])[0] for timestep in range(3)])
        session.close()
        monkeypatch.setattr(
            surroundings,
            "_preparation",
            lambda loaded, names, tables: DevicePreparation(names.cameras, names.vectors, tables),
        )
    assert [one.tobytes() for one in answers[0]] == [other.tobytes() for other in answers[1]]  # type: ignore[union-attr]
