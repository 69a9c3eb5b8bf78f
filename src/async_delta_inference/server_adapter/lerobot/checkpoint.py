"""A checkpoint's files: where they are, which they are, and whether a processor is among them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from async_delta_inference.checkpoint_config import CheckpointConfig, read_checkpoint_config
from async_delta_inference.errors import ConfigError, SetupRefusedError
from async_delta_inference.transport.messages import SessionSpec

__all__ = ["PolicyIdentity", "checkpoint_config", "file_of"]


@dataclass(frozen=True)
class PolicyIdentity:
    """Sessions that ask for the same share one loaded policy; what they observe is each session's own.

    Args:
        policy_type: LeRobot's name of the policy class.
        path: Checkpoint folder, or hub name.
        device: Torch device.
        overrides: Of the checkpoint's configuration.
        files: Name, time and size of the folder's files, which tell a checkpoint that was written anew; empty for a
            name on the hub.
    """

    policy_type: str
    path: str
    device: str
    overrides: tuple[str, ...]
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, spec: SessionSpec, policy_type: str = "") -> PolicyIdentity:
        """What a session asks for, with the checkpoint's files as they are now."""
        path = spec.pretrained_name_or_path
        return cls(policy_type or spec.policy_type, path, spec.device, spec.options.overrides, _files_in(path))

    def check_replaces(self, loaded: PolicyIdentity | None, sessions: int) -> None:
        """Refuse to be loaded in the place of what sessions are served with.

        Raises:
            SetupRefusedError: There are such sessions.
        """
        if loaded is None or not sessions:
            return
        # A checkpoint that was written anew has the same name.
        changed = ", whose files have changed since," if str(self) == str(loaded) else ""
        raise SetupRefusedError(
            f"this server serves {loaded} to {sessions} session{'s' if sessions > 1 else ''}; {self}{changed} can be "
            "served when they have ended, or by another server"
        )

    def __str__(self) -> str:
        overridden = f" with {', '.join(self.overrides)}" if self.overrides else ""
        return f"{self.policy_type} from {self.path} on {self.device}{overridden}"


def checkpoint_config(path: str, overrides: Mapping[str, str]) -> CheckpointConfig:
    """What the checkpoint's configuration says; a name on the hub is downloaded, unless it was before.

    Raises:
        SetupRefusedError: There is none, or it is not a policy's.
    """
    file = file_of(path, "config.json", download=True)
    if file is None:
        raise SetupRefusedError(f"{path} is no checkpoint: there is no config.json in it")
    try:
        return read_checkpoint_config(file, overrides)
    except ConfigError as exc:
        raise SetupRefusedError(str(exc)) from exc


def file_of(path: str, name: str, *, download: bool = False) -> Path | None:
    """A file of a checkpoint; None where it has none of that name.

    Args:
        path: Checkpoint folder, or hub name.
        name: Of the file.
        download: Whether a file of the hub's that is not here yet is fetched.

    Raises:
        SetupRefusedError: The hub cannot be asked.
    """
    try:
        if Path(path).is_dir():
            file = Path(path) / name
            return file if file.is_file() else None
        found = try_to_load_from_cache(path, name)
        if isinstance(found, str):
            return Path(found)
        return Path(hf_hub_download(path, name)) if download else None
    except (HFValidationError, ValueError) as exc:
        raise SetupRefusedError(f"{path!a} is no folder of this machine, and no name on the hub: {exc!a}") from exc
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise SetupRefusedError(
            f"{path!a} is no folder of this machine, and the hub does not give {name}: {exc!a}"
        ) from exc


def _files_in(path: str) -> tuple[tuple[str, int, int], ...]:
    folder = Path(path)
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries))
