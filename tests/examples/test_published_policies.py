"""Every checkpoint in examples/policies: size, card, and that the unmodified LeRobot class loads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from export_policy import MAX_BYTES

POLICIES = Path(__file__).resolve().parents[2] / "examples" / "policies"
CHECKPOINTS = sorted(file.parent for file in POLICIES.glob("*/config.json"))
CARD_NEEDS = ("## Data", "## Training", "## Measured", "Seed", "95 %", "2026-", "train_act.py", "Wall time")

every_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)


def test_there_is_a_checkpoint_to_evaluate() -> None:
    assert CHECKPOINTS


@every_checkpoint
def test_checkpoint_is_small_and_half_precision(checkpoint: Path) -> None:
    from safetensors.torch import load_file

    weights = checkpoint / "model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    tensors = load_file(weights)
    # Buffers stay in full precision, all else is halved.
    kept = {name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dtype != torch.float16}
    assert all(".bn" in name or "downsample.1" in name or "pos_enc" in name for name in kept), sorted(kept)


@every_checkpoint
def test_checkpoint_carries_nothing_of_the_machine_it_was_trained_on(checkpoint: Path) -> None:
    for file in checkpoint.glob("*.json"):
        assert not re.search(r"/(work|home|root|tmp)/", file.read_text()), file.name


@every_checkpoint
def test_card_says_what_was_done_and_measured(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text()
    assert [word for word in CARD_NEEDS if word not in card] == []


def policy_type_of(checkpoint: Path) -> str:
    return str(json.loads((checkpoint / "config.json").read_text())["type"])


@every_checkpoint
def test_checkpoint_predicts_a_chunk_that_depends_on_what_it_sees(checkpoint: Path) -> None:
    from evaluate_policy import ChunkPolicy

    if policy_type_of(checkpoint) != "act":
        pytest.skip("its policy wants to be told of the robot's actions: see the next test")
    policy = ChunkPolicy(checkpoint)
    config = policy.policy.config
    torch.manual_seed(0)

    def observation() -> dict[str, torch.Tensor]:
        return {name: torch.rand(1, *feature.shape) for name, feature in config.input_features.items()}

    first, again = observation(), observation()
    chunk = policy.predict(first)
    assert chunk.shape == (config.chunk_size, config.output_features["action"].shape[0])
    assert np.isfinite(chunk).all()
    blind = {name: again[name] if "images" in name else first[name] for name in first}
    assert np.abs(policy.predict(blind) - chunk).max() > 1e-3


@pytest.mark.parametrize(
    "checkpoint", [one for one in CHECKPOINTS if policy_type_of(one) == "act_smooth"], ids=lambda path: path.name
)
def test_checkpoint_predicts_a_chunk_that_depends_on_what_it_is_told(checkpoint: Path) -> None:
    pytest.importorskip("lerobot_policy_act_smooth", reason="needs the extra act-smooth")
    from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
    from async_delta_inference.transport import (
        ActionPrefix,
        EpisodeStart,
        Observation,
        ObservationFeatures,
        Request,
        SessionSpec,
    )

    features = ObservationFeatures(tuple(f"s{i}" for i in range(8)), dict.fromkeys(("image", "image2"), (128, 128, 3)))
    policy = LeRobotPolicy()
    session = policy.open(SessionSpec("", str(checkpoint), 50, features, 7))
    chunks = []
    for told in (0.0, 1.0, None):
        session.reset(EpisodeStart(0, ""))
        observation = Observation.empty(features)
        observation.state[:] = 0
        for image in observation.images.values():
            image[:] = 128
        rows = np.empty((0, 7), np.float32) if told is None else np.full((5, 7), told, np.float32)
        observation.prefix, observation.inference_delay = ActionPrefix.of_rows(rows, 0), 5
        (chunk,) = policy.infer([Request(session, observation, lambda: None)])
        assert isinstance(chunk, np.ndarray)
        assert chunk.shape == (50, 7)
        chunks.append(chunk)
    session.close()
    assert np.array_equal(chunks[0][:5], np.zeros((5, 7), np.float32))
    assert np.abs(chunks[0][5:] - chunks[1][5:]).max() > 1e-3
    assert np.abs(chunks[0][5:] - chunks[2][:45]).max() > 1e-3


@every_checkpoint
def test_image_keys_are_the_ones_policy_server_can_serve(checkpoint: Path) -> None:
    features = json.loads((checkpoint / "config.json").read_text())["input_features"]
    images = [name for name, feature in features.items() if feature["type"] == "VISUAL"]
    assert images
    assert all(name.startswith("observation.images.") for name in images)
