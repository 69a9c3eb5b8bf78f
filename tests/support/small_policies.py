"""Small random checkpoints of LeRobot's policy types, made offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from async_delta_inference.transport import ObservationFeatures

ACTION_DIM = 7
SIDE = 64
_SETTINGS: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 20,
        "n_action_steps": 20,
        "pretrained_backbone_weights": None,
        "dim_model": 64,
        "n_heads": 2,
        "dim_feedforward": 128,
        "n_encoder_layers": 1,
        "use_vae": False,
    },
    "act_smooth": {
        "chunk_size": 20,
        "n_action_steps": 20,
        "length_prefix_past": 2,
        "length_prefix_future": 4,
        "use_action_relative": False,
        "pretrained_backbone_weights": None,
        "dim_model": 64,
        "n_heads": 2,
        "dim_feedforward": 128,
        "n_encoder_layers": 1,
        "use_vae": False,
    },
    "diffusion": {
        "horizon": 16,
        "n_action_steps": 8,
        "n_obs_steps": 1,
        "down_dims": (32, 64),
        "pretrained_backbone_weights": None,
        "crop_shape": None,
        "num_train_timesteps": 4,
        "num_inference_steps": 2,
        "spatial_softmax_num_keypoints": 8,
        "diffusion_step_embed_dim": 32,
    },
    "vqbet": {
        "pretrained_backbone_weights": None,
        "crop_shape": None,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 32,
        "gpt_input_dim": 32,
        "gpt_output_dim": 32,
        "vqvae_embedding_dim": 16,
        "vqvae_enc_hidden_dim": 16,
        "spatial_softmax_num_keypoints": 8,
    },
    "tdmpc": {
        "latent_dim": 16,
        "image_encoder_hidden_dim": 8,
        "state_encoder_hidden_dim": 16,
        "mlp_dim": 16,
        "n_action_repeats": 1,
        "horizon": 3,
        "n_gaussian_samples": 8,
        "n_pi_samples": 4,
        "n_elites": 4,
        "cem_iterations": 1,
    },
    "smolvla": {
        "load_vlm_weights": False,
        "chunk_size": 20,
        "n_action_steps": 20,
        "num_steps": 2,
        "num_vlm_layers": 2,
        "num_expert_layers": 2,
        "resize_imgs_with_padding": (SIDE, SIDE),
        "tokenizer_max_length": 16,
        "max_state_dim": 8,
        "max_action_dim": 8,
    },
}


def features_of(policy_type: str) -> ObservationFeatures:
    """What the checkpoint of this type observes: vqbet and tdmpc take one camera."""
    cameras = ["image"] if policy_type in ("vqbet", "tdmpc") else ["image", "image2"]
    return ObservationFeatures(tuple(f"s{i}" for i in range(8)), {name: (SIDE, SIDE, 3) for name in cameras})


def build(policy_type: str, folder: Path, **changed: Any) -> Path:
    """Save a random policy of this type with its processors."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies import get_policy_class, make_pre_post_processors
    from lerobot.policies.factory import make_policy_config

    features = features_of(policy_type)
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)) for name in features.images
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (features.state_dim,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))}
    settings = _SETTINGS[policy_type] | changed
    if policy_type == "smolvla":
        settings["vlm_model_name"] = str(_small_vlm(folder / "vlm"))
    config = make_policy_config(
        policy_type, device="cpu", input_features=inputs, output_features=outputs, push_to_hub=False, **settings
    )
    torch.manual_seed(0)
    get_policy_class(policy_type)(config).save_pretrained(folder)
    statistics = {key: _statistics((3, 1, 1) if "images" in key else f.shape) for key, f in (inputs | outputs).items()}
    for processor in make_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(folder)
    return folder


def _statistics(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {
        "mean": torch.full(shape, 0.1),
        "std": torch.full(shape, 0.7),
        "min": torch.full(shape, -1.5),
        "max": torch.full(shape, 1.25),
    }


def _small_vlm(folder: Path) -> Path:
    """A SmolVLM of a few thousand parameters and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    words = ["<unk>", "<pad>", "<s>", "</s>", *special.values(), "pick", "up", "the", "soup"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
    )
    text = {
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
    }
    SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=4).save_pretrained(folder)
    images = SmolVLMImageProcessor()
    SmolVLMProcessor(
        image_processor=images, tokenizer=fast, video_processor=SmolVLMVideoProcessor(), chat_template="{{ messages }}"
    ).save_pretrained(folder)
    images.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
