"""The vision-language model in a SmolVLA, with random weights and a tokenizer of a few words, written offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["PUBLISHED_VLM", "SMALL_VLM", "VlmShape", "write_vlm"]

_SPECIAL_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_WORDS = ("pick", "up", "the", "alphabet", "soup", "and", "place", "it", "in", "basket")


@dataclass(frozen=True)
class VlmShape:
    """What makes the configuration of transformers' SmolVLM.

    Args:
        text: Of the language model.
        vision: Of the encoder of images.
        scale_factor: How many patches a side become one token.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    scale_factor: int


PUBLISHED_VLM = VlmShape(
    text={
        "vocab_size": 49280,
        "hidden_size": 960,
        "intermediate_size": 2560,
        # SmolVLM2-500M has 32; SmolVLA cuts off those above the 16th as soon as it has loaded them.
        "num_hidden_layers": 16,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
    },
    vision={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    scale_factor=4,
)
"""SmolVLM2-500M-Video-Instruct's."""

SMALL_VLM = VlmShape(
    text={
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    },
    scale_factor=2,
)


def write_vlm(folder: Path, shape: VlmShape) -> Path:
    """Write it, weights in bfloat16, as ``from_pretrained`` reads it.

    Returns:
        ``folder``.
    """
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    tokenizer = _write_processor(folder)
    text = {"model_type": "llama", "pad_token_id": tokenizer.pad_token_id, **shape.text}
    config = SmolVLMConfig(
        text_config=text,
        vision_config=dict(shape.vision),
        scale_factor=shape.scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids(_SPECIAL_TOKENS["image_token"]),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _write_processor(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = ["<unk>", "<pad>", "<s>", "</s>", *_SPECIAL_TOKENS.values(), *_WORDS]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=_SPECIAL_TOKENS,
    )
    images = SmolVLMImageProcessor()
    processor = SmolVLMProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(),
        chat_template="{{ messages }}",
    )
    for part in (processor, images, tokenizer):
        part.save_pretrained(folder)
    return tokenizer
