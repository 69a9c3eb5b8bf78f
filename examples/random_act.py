"""A small ACT checkpoint with random weights: exercises the whole pipeline, solves nothing.

::

    python examples/random_act.py --env.type=libero --env.task=libero_object --output_dir=outputs/random_act
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.envs.configs import EnvConfig

from async_delta_inference.client.environments import known_environments, make_environments
from async_delta_inference.command_line import parse_arguments
from async_delta_inference.transport import ObservationFeatures


def build_random_act(
    folder: Path,
    features: ObservationFeatures,
    action_dim: int,
    *,
    image_size: int | None = 96,
    chunk_size: int = 50,
    seed: int = 0,
    action_scale: float = 0.2,
) -> Path:
    """Save a random ACT of a few million parameters with its processors, as ``save_pretrained`` does.

    Args:
        folder: To write to.
        features: What the policy will observe.
        action_dim: Length A of its actions.
        image_size: Height and width of the policy's images, to which the server resizes; None: as observed.
        chunk_size: Actions per chunk.
        seed: What the weights are drawn with.
        action_scale: Standard deviation of the actions, so that they move a robot without flinging it.

    Returns:
        ``folder``.
    """
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(seed)
    cameras = {f"observation.images.{name}": shape for name, shape in features.images.items()}
    config = ACTConfig(
        input_features={
            **{
                key: PolicyFeature(FeatureType.VISUAL, (3, image_size or height, image_size or width))
                for key, (height, width, _) in cameras.items()
            },
            "observation.state": PolicyFeature(FeatureType.STATE, (features.state_dim,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        chunk_size=chunk_size,
        n_action_steps=chunk_size,
        pretrained_backbone_weights=None,
        dim_model=64,
        n_heads=2,
        dim_feedforward=128,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )
    ACTPolicy(config).save_pretrained(folder)
    for processor in make_pre_post_processors(
        config, dataset_stats=_stats(list(cameras), features, action_dim, action_scale)
    ):
        processor.save_pretrained(folder)
    return folder


def _stats(
    cameras: list[str], features: ObservationFeatures, action_dim: int, action_scale: float
) -> dict[str, dict[str, torch.Tensor]]:
    image = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    return {
        **dict.fromkeys(cameras, image),
        "observation.state": {"mean": torch.zeros(features.state_dim), "std": torch.ones(features.state_dim)},
        "action": {"mean": torch.zeros(action_dim), "std": torch.full((action_dim,), action_scale)},
    }


@dataclass(kw_only=True)
class RandomActConfig:
    """Flags."""

    env: EnvConfig
    """Environment whose observations and actions the policy is to fit."""
    output_dir: Path = Path("outputs/random_act")
    """Folder of the checkpoint."""
    image_size: int = 96
    """Height and width of the policy's images, pixels."""
    chunk_size: int = 50
    """Actions per chunk."""
    seed: int = 0
    """What the weights are drawn with."""


def main() -> None:
    """Build the checkpoint unless it is there."""
    known_environments()  # Plugins', too, and any gymnasium id.
    config = parse_arguments(RandomActConfig, None, "random_act.py")

    if (config.output_dir / "config.json").is_file():
        print(f"{config.output_dir} is there")
        return
    environment = make_environments(config.env)[0]
    build_random_act(
        config.output_dir,
        environment.features,
        environment.action_dim,
        image_size=config.image_size,
        chunk_size=config.chunk_size,
        seed=config.seed,
    )
    environment.close()
    print(f"wrote {config.output_dir}")


if __name__ == "__main__":
    main()
