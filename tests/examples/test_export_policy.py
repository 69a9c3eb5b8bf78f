"""The untrained ACT, its half-precision copy, and the rate that a card reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_dataset import Episode, dataset_features, write_demonstrations
from export_policy import MAX_BYTES, export, to_half

SIZE_PX = 64


def make_episode(index: int, attempt: int) -> Episode:
    rng = np.random.default_rng(index)
    frames = [
        {
            "observation.images.image": rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8),
            "observation.state": rng.normal(size=8).astype(np.float32),
            "action": rng.normal(size=7).astype(np.float32),
            "is_rendered": np.array([True]),
            "task": "pick up the soup",
        }
        for _ in range(10)
    ]
    return Episode(frames, is_success=True)


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint as train_act.py starts from."""
    from act_init import ActSize, save_initial_checkpoint

    folder = tmp_path_factory.mktemp("act")
    features = dataset_features({"image": (SIZE_PX, SIZE_PX, 3)}, state_dim=8, action_dim=7)
    write_demonstrations(folder / "demos", 20, features, 2, make_episode)
    save_initial_checkpoint(folder / "demos", folder / "initial", ActSize(chunk_size=10), seed=0)
    return folder / "initial"


def test_calibrated_activations_neither_vanish_nor_explode(initial: Path) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy

    backbone = ACTPolicy.from_pretrained(initial).model.backbone
    with torch.no_grad():
        calibrated = backbone(torch.randn(8, 3, SIZE_PX, SIZE_PX))["feature_map"].std()
    assert 0.3 < calibrated < 3.0


def test_export_halves_the_file_and_predicts_nearly_the_same(initial: Path, tmp_path: Path) -> None:
    from evaluate_policy import ChunkPolicy

    n_bytes = export(initial, tmp_path)
    assert n_bytes < 0.55 * (initial / "model.safetensors").stat().st_size
    assert n_bytes <= MAX_BYTES
    observation = {
        "observation.images.image": torch.rand(1, 3, SIZE_PX, SIZE_PX),
        "observation.state": torch.rand(1, 8),
    }
    full, half = (ChunkPolicy(folder).predict(observation) for folder in (initial, tmp_path))
    assert full.shape == (10, 7)
    np.testing.assert_allclose(full, half, atol=0.02)
    assert not np.array_equal(full, half)


def test_exported_config_names_no_path_of_this_machine(initial: Path, tmp_path: Path) -> None:
    export(initial, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_path"] is None


@pytest.mark.parametrize("crop_px", [None, (90, 220, 240, 200)])
def test_a_policy_that_resizes_by_itself_sees_what_it_was_trained_on(
    initial: Path, tmp_path: Path, crop_px: tuple[int, int, int, int] | None
) -> None:
    from evaluate_policy import ChunkPolicy
    from lerobot.processor import ImageCropResizeProcessorStep

    export(initial, tmp_path, resize_from_px=480, crop_px=crop_px)
    policy = ChunkPolicy(tmp_path)
    assert policy.policy.config.image_features["observation.images.image"].shape == (3, 480, 480)
    key, state = "observation.images.image", torch.rand(1, 8)
    large = torch.rand(1, 3, 480, 480)
    shrink = ImageCropResizeProcessorStep(crop_px and {key: crop_px}, resize_size=(SIZE_PX, SIZE_PX))
    small = shrink.observation({key: large})[key]
    expected = ChunkPolicy(initial).predict({key: small, "observation.state": state})
    np.testing.assert_allclose(policy.predict({key: large, "observation.state": state}), expected, atol=0.02)


def test_a_value_beyond_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        to_half({"weight": torch.tensor([1e6])}, set())
    assert to_half({"running_var": torch.tensor([1e-9])}, {"running_var"})["running_var"] == 1e-9
