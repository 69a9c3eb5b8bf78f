"""Builds LeRobot's ACT small enough for two CPU cores, without pretrained weights.

ACT freezes the batch norms of its ResNet because it expects pretrained statistics. Untrained, they are the identity,
activations grow from block to block and training from scratch stalls. So the statistics are measured once, on images of
the dataset, before the first step. Nothing in ACT changes: they are buffers that every checkpoint holds anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.act.modeling_act import ACTPolicy

CALIBRATION_FRAMES = 48
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ActSize:
    """Size of the network. The default has 12.2 million parameters, 24.4 MB in half precision.

    Attributes:
        chunk_size: actions predicted at once.
        dim_model: width of the transformer.
        dim_feedforward: width of its feed-forward layers.
        n_encoder_layers: layers of its encoder; the decoder has one.
    """

    chunk_size: int = 50
    dim_model: int = 160
    dim_feedforward: int = 512
    n_encoder_layers: int = 2


def build_act(dataset: LeRobotDataset, size: ActSize, image_shape_chw: tuple[int, int, int] | None = None) -> ACTPolicy:
    """Builds an untrained ACT for the dataset's observations and actions.

    Args:
        dataset: gives the features.
        size: of the network.
        image_shape_chw: shape the policy asks for; the dataset's own if None.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.utils.feature_utils import dataset_to_policy_features

    features = dataset_to_policy_features(dataset.meta.features)
    inputs = {name: feature for name, feature in features.items() if name.startswith("observation.")}
    if image_shape_chw is not None:
        for name in dataset.meta.camera_keys:
            inputs[name] = PolicyFeature(FeatureType.VISUAL, image_shape_chw)
    config = ACTConfig(
        input_features=inputs,
        output_features={"action": features["action"]},
        pretrained_backbone_weights=None,
        chunk_size=size.chunk_size,
        n_action_steps=size.chunk_size,
        dim_model=size.dim_model,
        dim_feedforward=size.dim_feedforward,
        n_encoder_layers=size.n_encoder_layers,
        # Demonstrations of a scripted expert have one mode, which is what the VAE is for otherwise.
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )
    return ACTPolicy(config)


def calibrate_frozen_batch_norms(backbone: nn.Module, images: Tensor) -> None:
    """Sets the frozen batch norms' statistics to what the images cause, layer by layer in one pass.

    Args:
        backbone: a ResNet with `FrozenBatchNorm2d`.
        images: normalized float32 (N, 3, H, W).
    """

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, FrozenBatchNorm2d)
        layer.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        layer.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    layers = [layer for layer in backbone.modules() if isinstance(layer, FrozenBatchNorm2d)]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    with torch.no_grad():
        backbone(images)
    for handle in handles:
        handle.remove()


def sample_images(dataset: LeRobotDataset, n_frames: int, seed: int) -> Tensor:
    """Draws frames of all cameras: float32 (n_frames * cameras, 3, H, W) in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(dataset), generator=generator)[:n_frames].tolist()
    items = [dataset[index] for index in indices]
    return torch.stack([item[key] for item in items for key in dataset.meta.camera_keys])


def normalize(images: Tensor) -> Tensor:
    """Normalizes (N, 3, H, W) images in 0..1 with the statistics that lerobot-train uses for every dataset."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def save_initial_checkpoint(
    dataset_root: Path, output: Path, size: ActSize, seed: int, resize_px: int | None = None
) -> None:
    """Writes an untrained, calibrated checkpoint that `lerobot-train --policy.path` starts from.

    Args:
        dataset_root: folder of the dataset.
        output: folder to write.
        size: of the network.
        seed: of the weights.
        resize_px: side the images are shrunk to, by a step of the policy's own preprocessor. That one runs in
            training, in PolicyServer and in lerobot-eval alike, so all of them show the network the same pixels.
    """
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies import make_pre_post_processors
    from lerobot.processor import ImageCropResizeProcessorStep, NormalizerProcessorStep

    torch.manual_seed(seed)
    dataset = LeRobotDataset(f"local/{dataset_root.name}", root=dataset_root)
    policy = build_act(dataset, size)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, dataset_stats=dataset.meta.stats)
    images = sample_images(dataset, CALIBRATION_FRAMES, seed)
    if resize_px is not None:
        resize = ImageCropResizeProcessorStep(resize_size=(resize_px, resize_px))
        steps = list(preprocessor.steps)
        # Before normalization: the step clamps to 0..1.
        position = next(i for i, step in enumerate(steps) if isinstance(step, NormalizerProcessorStep))
        preprocessor.steps = [*steps[:position], resize, *steps[position:]]
        images = resize.observation({"images": images})["images"]
    calibrate_frozen_batch_norms(policy.model.backbone, normalize(images))
    policy.save_pretrained(output)
    preprocessor.save_pretrained(output)
    postprocessor.save_pretrained(output)
