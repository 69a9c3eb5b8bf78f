"""Checks an environment against a checkpoint's ``config.json`` before anything is sent, so that a camera that does not
match is an error here and not a KeyError in a server's log.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from async_delta_inference.errors import ConfigError, FeatureMismatchError
from async_delta_inference.transport import ObservationFeatures

__all__ = ["check_checkpoint", "local_checkpoint"]

_HUB_TIMEOUT_S = 5.0
_IMAGES = "observation.images."


def local_checkpoint(pretrained_name_or_path: str, *, shares_files: bool = True) -> Path | None:
    """The checkpoint's folder, or None when the server resolves the name: one for the hub, or a path of its machine's.

    Args:
        pretrained_name_or_path: As on the command line.
        shares_files: Whether the server sees this machine's files.

    Raises:
        ConfigError: It looks like a path and is no checkpoint.
    """
    path = Path(pretrained_name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"--pretrained_name_or_path={path} has no config.json: name the folder that save_pretrained wrote, "
                "often checkpoints/<step>/pretrained_model"
            )
        return path.resolve()
    if not shares_files:
        return None
    looks_like_path = path.is_absolute() or path.exists() or pretrained_name_or_path.count("/") != 1
    if looks_like_path or pretrained_name_or_path.startswith((".", "~")) or _is_meant_as_path(path):
        raise ConfigError(f"--pretrained_name_or_path={pretrained_name_or_path}: there is no such folder{_meant(path)}")
    _check_hub_name(pretrained_name_or_path)
    return None


def _is_meant_as_path(path: Path) -> bool:
    """Whether folder/name, which a hub could have, stands beside what it may have been meant to be."""
    return bool(_meant(path)) or any(path.parent.glob("*/config.json"))


def _meant(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    close = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()], n=1)
    return f"; is it {path.parent / close[0]}?" if close else ""


def _check_hub_name(name: str) -> None:
    """Ask the hub now for what a server would ask it for after half a minute of loading.

    Raises:
        ConfigError: It has no such model, or cannot be asked for one that is not in its cache here.
    """
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import RepositoryNotFoundError
    except ModuleNotFoundError:
        return
    if (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return
    nowhere = f"--pretrained_name_or_path={name}: there is no such folder here, and"
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except RepositoryNotFoundError as exc:
        raise ConfigError(f"{nowhere} the hub has no such model, or it is private: hf auth login") from exc
    except Exception as exc:
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ConfigError(f"{nowhere} the hub cannot be asked for it: {reason}") from exc


def check_checkpoint(checkpoint: Path, policy_type: str, features: ObservationFeatures, action_dim: int) -> None:
    """Refuse a checkpoint that this environment cannot feed.

    Args:
        checkpoint: Folder with ``config.json``.
        policy_type: As on the command line.
        features: What the environment observes.
        action_dim: Length of its actions.

    Raises:
        ConfigError: The checkpoint cannot be read or is of another policy type.
        FeatureMismatchError: Cameras, state or action differ. Names both sides.
    """
    config = _read_config(checkpoint)
    found = config.get("type")
    if found is not None and found != policy_type:
        raise ConfigError(f"the checkpoint {checkpoint} is of type {found}: use --policy_type={found}")
    inputs = {key: tuple(feature["shape"]) for key, feature in (config.get("input_features") or {}).items()}
    outputs = {key: tuple(feature["shape"]) for key, feature in (config.get("output_features") or {}).items()}
    _check_cameras(checkpoint, {key for key in inputs if "image" in key}, features)
    state = inputs.get("observation.state")
    if state is not None and state != (features.state_dim,):
        raise FeatureMismatchError(
            f"the environment's state has {features.state_dim} elements ({', '.join(features.state_names)}), "
            f"the checkpoint {checkpoint} takes {state}"
        )
    unserved = [key for key in inputs if not key.startswith(_IMAGES) and key not in {"observation.state", "task"}]
    if unserved:
        raise FeatureMismatchError(
            f"the checkpoint {checkpoint} takes {', '.join(unserved)}, which PolicyServer cannot pass to a policy"
        )
    action = outputs.get("action")
    if action is not None and action != (action_dim,):
        raise FeatureMismatchError(
            f"the environment takes actions of {action_dim} elements, the checkpoint {checkpoint} gives {action}"
        )


def _check_cameras(checkpoint: Path, expected: set[str], features: ObservationFeatures) -> None:
    served = {f"{_IMAGES}{name}" for name in features.images}
    if served != expected:
        raise FeatureMismatchError(
            f"the environment gives the cameras {_listed(served)}, the checkpoint {checkpoint} takes "
            f"{_listed(expected)}: choose or rename cameras with --env flags, or use a checkpoint trained on these"
        )


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys)) or "none"


def _read_config(checkpoint: Path) -> dict[str, Any]:
    try:
        config = json.loads((checkpoint / "config.json").read_text())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"the checkpoint's {checkpoint / 'config.json'} cannot be read: {exc}") from exc
    if not isinstance(config, dict):
        raise ConfigError(f"the checkpoint's {checkpoint / 'config.json'} is not a policy's configuration")
    return config
