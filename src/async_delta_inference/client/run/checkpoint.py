"""Checks an environment against a checkpoint's ``config.json`` before anything is sent, so that a camera that does not
match is an error here and not a KeyError in a server's log.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from async_delta_inference.checkpoint_config import CheckpointConfig, read_checkpoint_config
from async_delta_inference.client.policy_flags import PolicyFlags
from async_delta_inference.errors import ConfigError, FeatureMismatchError
from async_delta_inference.input_names import input_names
from async_delta_inference.transport import ObservationFeatures

__all__ = ["check_checkpoint", "local_checkpoint"]

_HUB_TIMEOUT_S = 5.0


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


def check_checkpoint(
    checkpoint: Path, flags: PolicyFlags, features: ObservationFeatures, action_dim: int
) -> CheckpointConfig:
    """Refuse a checkpoint that this environment cannot feed, and say what else there is to say of it.

    What LeRobot's own evaluation accepts is accepted.

    Args:
        checkpoint: Folder with ``config.json``.
        flags: What the user says of the policy.
        features: What the environment observes.
        action_dim: Length of its actions.

    Raises:
        ConfigError: The checkpoint cannot be read or is of another policy type.
        FeatureMismatchError: Cameras, state or action differ. Names both sides.
    """
    overrides = dict(text.split("=", 1) for text in flags.policy_overrides)
    config = read_checkpoint_config(checkpoint / "config.json", overrides)
    found = config.policy_type
    if found and flags.policy_type and found != flags.policy_type:
        raise ConfigError(f"the checkpoint {checkpoint} is of type {found}: use --policy_type={found}, or leave it out")
    try:
        names = input_names(features, config.inputs, flags.rename_map)
    except FeatureMismatchError as exc:
        raise FeatureMismatchError(f"the checkpoint {checkpoint} does not fit: {exc}") from exc
    given = set(names.cameras.values())
    if (missing := sorted(set(config.cameras) - given)) and not config.fills_in_cameras:
        raise FeatureMismatchError(
            f"the environment gives the cameras {', '.join(sorted(given)) or 'none'}, the checkpoint {checkpoint} "
            f"takes {', '.join(missing)} besides: choose cameras with --env flags, rename them with --rename_map, or "
            "use a checkpoint trained on these"
        )
    for key, part in names.vectors.items():
        declared, given = config.inputs.get(key), part.stop - part.start
        if declared is not None and declared != (given,) and not config.pads_state:
            raise FeatureMismatchError(
                f"the environment's {key.removeprefix('observation.')} has {given} elements "
                f"({', '.join(features.state_names[part])}), the checkpoint {checkpoint} takes {declared}"
            )
    unserved = set(config.inputs) - set(config.cameras) - set(names.vectors) - {"task"}
    if unserved and not flags.rename_map:
        raise FeatureMismatchError(
            f"the checkpoint {checkpoint} takes {', '.join(sorted(unserved))}, which the environment does not give"
        )
    if config.action_dim not in (None, action_dim):
        raise FeatureMismatchError(
            f"the environment takes actions of {action_dim} elements, the checkpoint {checkpoint} gives "
            f"({config.action_dim},)"
        )
    return config
