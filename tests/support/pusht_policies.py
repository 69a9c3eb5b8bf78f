"""Small random checkpoints of LeRobot's policy types that act in PushT, made offline."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.envs.configs import PushtEnv
from small_policies import _SETTINGS, _small_vlm

from async_delta_inference.transport import Observation, ObservationFeatures, PolicyOptions, SessionSpec

SIDE_PX = 96
FEATURES = ObservationFeatures(("x", "y"), {"image": (SIDE_PX, SIDE_PX, 3)})
PACKAGES = {"smolvla": "num2words", "diffusion": "diffusers", "multi_task_dit": "diffusers"}
"""What a policy type needs beyond LeRobot."""
CAMERA = "observation.image"

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "act": ("act", _SETTINGS["act"] | {"n_action_steps": 7}),
    "act with ensembling": ("act", _SETTINGS["act"] | {"n_action_steps": 1, "temporal_ensemble_coeff": 0.01}),
    "diffusion": ("diffusion", _SETTINGS["diffusion"] | {"n_obs_steps": 2}),
    "act of keypoints": ("act", _SETTINGS["act"] | {"n_action_steps": 7}),
    "diffusion of keypoints": ("diffusion", _SETTINGS["diffusion"] | {"n_obs_steps": 2}),
    "vqbet": ("vqbet", _SETTINGS["vqbet"] | {"n_obs_steps": 5, "n_action_pred_token": 3, "action_chunk_size": 5}),
    "tdmpc": ("tdmpc", _SETTINGS["tdmpc"] | {"use_mpc": False, "n_action_repeats": 2}),
    "tdmpc with MPC": ("tdmpc", _SETTINGS["tdmpc"]),
    "smolvla": ("smolvla", _SETTINGS["smolvla"] | {"n_action_steps": 6}),
    "multi_task_dit": (
        "multi_task_dit",
        {
            "horizon": 12,
            "n_action_steps": 8,
            "hidden_dim": 32,
            "num_layers": 1,
            "num_heads": 2,
            "num_train_timesteps": 4,
            "num_inference_steps": 2,
            "timestep_embed_dim": 16,
            "image_resize_shape": None,
            "image_crop_shape": (32, 32),
            "tokenizer_max_length": 8,
        },
    ),
    "gaussian_actor": (
        "gaussian_actor",
        {"latent_dim": 16, "state_encoder_hidden_dim": 16, "dataset_stats": None},
    ),
    "xvla": (
        "xvla",
        {
            "chunk_size": 6,
            "n_action_steps": 5,
            "hidden_size": 32,
            "depth": 1,
            "num_heads": 2,
            "num_domains": 2,
            "len_soft_prompts": 2,
            "dim_time": 8,
            "max_len_seq": 128,
            "action_mode": "auto",
            "max_state_dim": 4,
            "max_action_dim": 4,
            "num_denoising_steps": 2,
            "tokenizer_max_length": 8,
            "resize_imgs_with_padding": (64, 64),
            "num_image_views": 1,
        },
    ),
}
"""What the parity table calls a policy, its type, and its settings."""


def pusht_for(kind: str, steps: int) -> PushtEnv:
    """The environment that shows a policy what it looks at: a picture, or the keypoints of the block."""
    obs_type = "environment_state_agent_pos" if _sees_keypoints(kind) else "pixels_agent_pos"
    return PushtEnv(episode_length=steps, obs_type=obs_type)


def _sees_keypoints(kind: str) -> bool:
    return kind.endswith("of keypoints")


def skip_without_package(kind: str) -> None:
    """Skip a test whose policy needs what is not installed."""
    package = PACKAGES.get(KINDS[kind][0])
    if package is not None and find_spec(package) is None:
        pytest.skip(f"{kind} needs {package}")


def spec(folder: Path | str, features: ObservationFeatures = FEATURES, **options: Any) -> SessionSpec:
    """What a session asks for, and of the policy besides."""
    return SessionSpec("", str(folder), 50, features, 2, options=PolicyOptions(**options))


def observe(seed: int, n_obs_steps: int = 1, features: ObservationFeatures = FEATURES) -> Observation:
    """A random one, whose timestep is the seed."""
    rng = np.random.default_rng(seed)
    observation = Observation.empty(features, n_obs_steps)
    for seen in observation.steps():
        seen.state[:] = rng.uniform(50, 450, features.state_dim)
        for image in seen.images.values():
            image[:] = rng.integers(0, 256, image.shape, np.uint8)
    observation.timestep, observation.task = seed, "push the block"
    return observation


def build_for_pusht(kind: str, folder: Path, camera: str = CAMERA, *, processors: bool = True, **changes: Any) -> Path:
    """Save a random policy with its processors."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies import get_policy_class, make_pre_post_processors
    from lerobot.policies.factory import make_policy_config

    policy_type, settings = KINDS[kind]
    settings = settings | changes
    inputs = {
        camera: PolicyFeature(FeatureType.VISUAL, (3, SIDE_PX, SIDE_PX)),
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    }
    if _sees_keypoints(kind):
        del inputs[camera]
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (16,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    if policy_type == "smolvla":
        settings["vlm_model_name"] = str(_small_vlm(folder / "vlm"))
    if policy_type == "multi_task_dit":
        settings["vision_encoder_name"] = settings["text_encoder_name"] = str(_small_clip(folder / "clip"))
    if policy_type == "xvla":
        settings["tokenizer_name"] = str(_words(folder / "words"))
        settings["florence_config"] = _florence()
    config = make_policy_config(
        policy_type, device="cpu", input_features=inputs, output_features=outputs, push_to_hub=False, **settings
    )
    torch.manual_seed(0)
    get_policy_class(policy_type)(config).save_pretrained(folder)
    if processors:
        for processor in make_pre_post_processors(config, dataset_stats=statistics(inputs | outputs)):
            processor.save_pretrained(folder)
    return folder


def statistics(features: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Such that a random policy's actions lie within PushT's square of 512."""
    values = {"mean": 250.0, "std": 80.0, "min": 50.0, "max": 450.0}
    pixels = {"mean": 0.5, "std": 0.3, "min": 0.0, "max": 1.0}
    return {
        key: {
            name: torch.full(
                (3, 1, 1) if "image" in key else feature.shape, (pixels if "image" in key else values)[name]
            )
            for name in values
        }
        for key, feature in features.items()
    }


def _words(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "<s>", "</s>", "push", "the", "block"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


def _small_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    torch.manual_seed(1)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return _words(folder)


def _florence() -> dict[str, Any]:
    return {
        "vision_config": {
            "model_type": "davit",
            "embed_dim": [8, 16],
            "depths": [1, 1],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "window_size": 4,
            "projection_dim": 16,
            "max_position_embeddings": 32,
            "max_temporal_embeddings": 4,
        },
        "text_config": {
            "model_type": "bart",
            "vocab_size": 32,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "max_position_embeddings": 128,
        },
        "projection_dim": 16,
    }
