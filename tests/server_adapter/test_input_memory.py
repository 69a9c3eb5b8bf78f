"""Memory of a policy's input: written again only where whoever was given it keeps nothing of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_act import FEATURES, observe, spec
from small_policies import ACTION_DIM, build, features_of

from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.server_adapter.lerobot.asking import FORGETFUL_TYPES
from async_delta_inference.server_adapter.tensors import Preparation
from async_delta_inference.transport import SessionSpec

CAMERAS = {name: f"observation.images.{name}" for name in FEATURES.images}
VECTORS = {"observation.state": slice(0, 8)}
TABLES = {key: np.linspace(0, 1, 768, dtype=np.float32).reshape(3, 256) for key in CAMERAS.values()}
BY_TABLE = pytest.mark.parametrize("tables", [TABLES, {}], ids=["looked up", "divided"])


def images(prepare: Preparation, timestep: int) -> dict[str, torch.Tensor]:
    batch, finished = prepare(observe(timestep), "pick up the soup")
    return {key: value for key, value in {**batch, **finished}.items() if "images" in key}


@BY_TABLE
def test_memory_that_a_policy_keeps_is_not_written_again(tables: dict[str, Any]) -> None:
    prepare = Preparation(CAMERAS, VECTORS, tables, is_forgetful=False)
    kept = {key: value[0, 1:] for key, value in images(prepare, 1).items()}  # views, as a queue of past images has
    copies = {key: value.clone() for key, value in kept.items()}
    again = images(prepare, 2)
    assert all(torch.equal(kept[key], copies[key]) for key in kept)
    assert not any(torch.equal(again[key][0, 1:], kept[key]) for key in kept)


def test_memory_of_a_forgetful_policy_serves_every_frame() -> None:
    prepare = Preparation(CAMERAS, VECTORS, TABLES, is_forgetful=True)
    places = [{key: value.data_ptr() for key, value in images(prepare, timestep).items()} for timestep in range(3)]
    assert places[0] == places[1] == places[2]
    assert len(set(places[0].values())) == len(CAMERAS)


def test_an_image_that_the_preprocessor_is_given_has_memory_of_its_own() -> None:
    """LeRobot's steps keep what they were given last."""
    prepare = Preparation(CAMERAS, VECTORS, {}, is_forgetful=True)
    kept = images(prepare, 1)
    copies = {key: value.clone() for key, value in kept.items()}
    images(prepare, 2)
    assert all(torch.equal(kept[key], copies[key]) for key in kept)


@pytest.mark.parametrize("policy_type", sorted(FORGETFUL_TYPES))
def test_forgetful_policy_keeps_nothing_of_its_input(policy_type: str, tmp_path: Path) -> None:
    if policy_type == "smolvla" and find_spec("num2words") is None:
        pytest.skip("SmolVLA's processor needs num2words: lerobot[smolvla]")
    policy = LeRobotPolicy()
    wanted = SessionSpec(policy_type, str(build(policy_type, tmp_path)), 10, features_of(policy_type), ACTION_DIM)
    session = policy.open(wanted)
    session.close()

    def answer(batch: dict[str, Any]) -> torch.Tensor:
        rest = {"observation.state": torch.zeros(1, 8), "task": ["pick up the soup"]}
        return policy._way([session.around.preprocess(rest, batch)], 10)

    assert kept_by(answer, wanted) == []


def kept_by(answer: Callable[[dict[str, Any]], torch.Tensor], wanted: SessionSpec) -> list[str]:
    """Keys of the images whose memory is still held after an answer, which is held itself."""
    rng = np.random.default_rng(0)
    memory = {
        f"observation.images.{name}": rng.random((1, shape[2], *shape[:2]), np.float32)
        for name, shape in wanted.features.images.items()
    }
    alive = {key: weakref.ref(array) for key, array in memory.items()}
    batch: dict[str, Any] = {key: torch.from_numpy(array) for key, array in memory.items()}
    del memory
    chunk = answer(batch)
    batch.clear()
    gc.collect()
    assert chunk.shape[0] == 1
    return [key for key, array in alive.items() if array() is not None]


def test_the_look_at_kept_memory_sees_a_policy_that_keeps_it(checkpoint: Path) -> None:
    queue: list[torch.Tensor] = []

    def remember(batch: dict[str, Any]) -> torch.Tensor:
        queue.append(batch["observation.images.image"][:, :1])
        return torch.zeros(1, 1, 1)

    assert kept_by(remember, spec(checkpoint)) == ["observation.images.image"]
