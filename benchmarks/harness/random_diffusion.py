"""A random diffusion policy that looks at two observations, with its processors, as ``save_pretrained`` writes them.

It imports torch and lerobot.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

from async_delta_inference.transport import ObservationFeatures

__all__ = ["build_random_diffusion"]

_DENOISING_STEPS = 5
_HORIZON_STEP = 8
"""The network halves its horizon three times."""


def build_random_diffusion(
    folder: Path, features: ObservationFeatures, action_dim: int, image_size: int, chunk_size: int
) -> None:
    """Write it.

    Args:
        folder: To write to.
        features: What it will observe.
        action_dim: Length A of its actions.
        image_size: Height and width of its images, pixels.
        chunk_size: Actions per chunk.
    """
    torch.manual_seed(0)
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, image_size, image_size))
        for name in features.images
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (features.state_dim,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
    config = DiffusionConfig(
        input_features=inputs,
        output_features=outputs,
        n_obs_steps=2,
        horizon=-(-(chunk_size + 1) // _HORIZON_STEP) * _HORIZON_STEP,
        n_action_steps=chunk_size,
        num_train_timesteps=_DENOISING_STEPS,
        down_dims=(32, 64, 64),
        crop_shape=None,
        pretrained_backbone_weights=None,
        device="cpu",
        push_to_hub=False,
    )
    DiffusionPolicy(config).save_pretrained(folder)
    statistics = {key: _statistics(feature.shape) for key, feature in (inputs | outputs).items()}
    for processor in make_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(folder)


def _statistics(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Of an image by channel."""
    sized = (shape[0], 1, 1) if len(shape) == 3 else shape
    values = {"mean": 0.5, "std": 0.25, "min": 0.0, "max": 1.0} if len(shape) == 3 else _STATE
    return {name: torch.full(sized, value) for name, value in values.items()}


_STATE = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0}
