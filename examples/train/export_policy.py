"""Copies a trained checkpoint to `examples/policies/NAME` in half precision, ready for the unmodified PolicyServer.

Parameters are stored as float16: half the file, and loading copies them back into float32 parameters. Buffers and the
processors' statistics stay float32, because a variance may be too small for half precision. The card, README.md, is
written by hand beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MAX_BYTES = 25_000_000
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "policy_preprocessor.json"


def to_half(tensors: dict[str, torch.Tensor], buffer_names: set[str]) -> dict[str, torch.Tensor]:
    """Casts all floating tensors but the named buffers to float16.

    Raises:
        ValueError: if a value does not fit into half precision.
    """
    result = {}
    for name, tensor in tensors.items():
        is_cast = tensor.is_floating_point() and name not in buffer_names
        result[name] = tensor.half() if is_cast else tensor
        if not torch.isfinite(result[name]).all():
            raise ValueError(f"{name} does not fit into half precision")
    return result


def export(
    checkpoint: Path, output: Path, resize_from_px: int | None = None, crop_px: tuple[int, int, int, int] | None = None
) -> int:
    """Writes the half-precision copy.

    Args:
        checkpoint: a `pretrained_model` folder of lerobot-train.
        output: folder to create; its README.md is kept.
        resize_from_px: for a simulator whose cameras are larger than the images trained on: the policy then asks for
            images of this size and its own preprocessor makes them small, so that PolicyServer and lerobot-eval, of
            which only the first resizes by itself, give the policy the same pixels.
        crop_px: part of that image that is kept before it is made small: (top, left, height, width).

    Returns:
        Size of the weights, bytes.

    Raises:
        ValueError: if the weights are larger than 25 MB or do not fit into half precision.
    """
    from lerobot.policies import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = json.loads((checkpoint / CONFIG_NAME).read_text())
    policy = get_policy_class(config["type"]).from_pretrained(checkpoint)
    buffers = {name for name, _ in policy.named_buffers()}
    output.mkdir(parents=True, exist_ok=True)
    save_file(to_half(load_file(checkpoint / WEIGHTS_NAME), buffers), output / WEIGHTS_NAME, metadata={"format": "pt"})
    (output / WEIGHTS_NAME).chmod(0o644)  # safetensors leaves it to its owner alone.
    for source in checkpoint.glob("policy_*processor*"):
        shutil.copyfile(source, output / source.name)
    config["pretrained_path"] = None  # Where it was trained from is of no use elsewhere.
    if resize_from_px is not None:
        _resize_in_preprocessor(config, output / PREPROCESSOR_NAME, resize_from_px, crop_px)
    (output / CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n")
    n_bytes = (output / WEIGHTS_NAME).stat().st_size
    if n_bytes > MAX_BYTES:
        raise ValueError(f"{n_bytes} bytes of weights, more than {MAX_BYTES}")
    return n_bytes


def _resize_in_preprocessor(
    config: dict, preprocessor_file: Path, resize_from_px: int, crop_px: tuple[int, int, int, int] | None
) -> None:
    """Makes the policy ask for large images and its preprocessor cut and shrink them to what it was trained on."""
    images = {name: feature for name, feature in config["input_features"].items() if feature["type"] == "VISUAL"}
    (trained_shape,) = {tuple(feature["shape"]) for feature in images.values()}
    for feature in images.values():
        feature["shape"] = [3, resize_from_px, resize_from_px]
    preprocessor = json.loads(preprocessor_file.read_text())
    step = {
        "registry_name": "image_crop_resize_processor",
        "config": {
            "crop_params_dict": {key: list(crop_px) for key in images} if crop_px else None,
            "resize_size": list(trained_shape[1:]),
        },
    }
    names = [s["registry_name"] for s in preprocessor["steps"]]
    # Before normalization, which lives on the small images' statistics and on values in 0..1.
    preprocessor["steps"].insert(names.index("normalizer_processor"), step)
    state_file = f"policy_preprocessor_step_{names.index('normalizer_processor')}_normalizer_processor.safetensors"
    assert any(s.get("state_file") == state_file for s in preprocessor["steps"])
    preprocessor_file.write_text(json.dumps(preprocessor, indent=2) + "\n")


def main() -> None:
    """Exports and prints the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="`pretrained_model` folder of lerobot-train")
    parser.add_argument("--output", type=Path, required=True, help="examples/policies/NAME")
    parser.add_argument("--resize-from-px", type=int, help="camera size of the simulator, if it is not the trained one")
    parser.add_argument(
        "--crop-px", type=int, nargs=4, metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"), help="as in collect_metaworld.py"
    )
    args = parser.parse_args()
    if args.crop_px and not args.resize_from_px:
        parser.error("--crop-px needs --resize-from-px, the size of the image that is cut")
    size = export(args.checkpoint, args.output, args.resize_from_px, args.crop_px and tuple(args.crop_px))
    print(f"{args.output}: {size} bytes")


if __name__ == "__main__":
    main()
