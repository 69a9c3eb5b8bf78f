"""Random policies of published sizes, written offline: the default ACT, and a SmolVLA around SmolVLM2-500M's shape.

It imports torch and lerobot; transformers only for a SmolVLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.factory import make_policy_config

from harness.gpu.vision_language import PUBLISHED_VLM, SMALL_VLM, VlmShape, write_vlm
from harness.payloads import Payload

__all__ = ["PUBLISHED", "SMALL", "PolicySize", "write_act", "write_smolvla"]

_SEED = 0
_ACTION_SCALE = 0.2


@dataclass(frozen=True)
class PolicySize:
    """How large the two policies are.

    Args:
        name: For the results.
        act: What differs from LeRobot's default configuration of ACT.
        smolvla: From that of SmolVLA.
        vlm: The vision-language model in it.
    """

    name: str
    act: Mapping[str, Any] = field(default_factory=dict)
    smolvla: Mapping[str, Any] = field(default_factory=dict)
    vlm: VlmShape = PUBLISHED_VLM


PUBLISHED = PolicySize("published")
"""ACT: ResNet18, width 512, chunks of 100, 52 M parameters. SmolVLA: 16 layers of SmolVLM2-500M, an expert of 0.75
times its width, ten denoising steps, images of 512x512, chunks of 50, 450 M parameters."""

SMALL = PolicySize(
    "small",
    act={"dim_model": 64, "n_heads": 2, "dim_feedforward": 128, "n_encoder_layers": 1, "use_vae": False},
    smolvla={"num_vlm_layers": 2, "num_steps": 2, "resize_imgs_with_padding": (64, 64)},
    vlm=SMALL_VLM,
)
"""For trying out this benchmark without a GPU; its figures say nothing."""


def write_act(folder: Path, payload: Payload, size: PolicySize) -> Path:
    """A random ACT that sees the payload, with its processors, as ``save_pretrained`` writes them.

    Returns:
        ``folder``.
    """
    return _write("act", folder, payload, {"pretrained_backbone_weights": None, **size.act})


def write_smolvla(folder: Path, payload: Payload, size: PolicySize) -> Path:
    """A random SmolVLA that sees the payload: the vision-language model in bfloat16 as published ones have it.

    Returns:
        ``folder``.
    """
    vlm = write_vlm(folder / "vlm", size.vlm)
    # With weights, since LeRobot makes a model without them in float32.
    return _write("smolvla", folder, payload, {"load_vlm_weights": True, "vlm_model_name": str(vlm), **size.smolvla})


def _write(policy_type: str, folder: Path, payload: Payload, settings: Mapping[str, Any]) -> Path:
    inputs, outputs = _features(payload)
    config = make_policy_config(
        policy_type, device="cpu", input_features=inputs, output_features=outputs, push_to_hub=False, **settings
    )
    torch.manual_seed(_SEED)
    get_policy_class(policy_type)(config).save_pretrained(folder)
    statistics = {key: _statistics(feature) for key, feature in (inputs | outputs).items()}
    for processor in make_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(folder)
    return folder


def _features(payload: Payload) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    observed = payload.features
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (channels, height, width))
        for name, (height, width, channels) in observed.images.items()
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (observed.state_dim,))
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (payload.chunk[1],))}


def _statistics(feature: PolicyFeature) -> dict[str, torch.Tensor]:
    if feature.type is FeatureType.VISUAL:  # Of an image by channel.
        return {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    deviation = _ACTION_SCALE if feature.type is FeatureType.ACTION else 1.0
    return {"mean": torch.zeros(feature.shape), "std": torch.full(feature.shape, deviation)}
