"""Which policy a session asks for, and what a checkpoint's folder tells without being loaded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from async_delta_inference.transport.messages import SessionSpec

__all__ = ["PolicyIdentity", "action_dim_of"]

_LARGEST_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class PolicyIdentity:
    """Sessions that ask for the same share one loaded policy; what they observe is each session's own.

    Args:
        policy_type: LeRobot's name of the policy class.
        path: Checkpoint folder, or hub name.
        device: Torch device.
        files: Name, time and size of the folder's files, which tell a checkpoint that was written anew; empty for a
            name on the hub.
    """

    policy_type: str
    path: str
    device: str
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, spec: SessionSpec) -> PolicyIdentity:
        """What a session asks for, with the checkpoint's files as they are now."""
        path = spec.pretrained_name_or_path
        return cls(spec.policy_type, path, spec.device, _files_in(path))

    def is_like(self, other: PolicyIdentity) -> bool:
        """Whether only the checkpoint's files differ."""
        return str(self) == str(other)

    def __str__(self) -> str:
        return f"{self.policy_type} from {self.path} on {self.device}"


def action_dim_of(path: str) -> int | None:
    """Length of an action, from the checkpoint's configuration; None where none is at hand or it does not tell.

    Args:
        path: Checkpoint folder, or hub name, of which what was downloaded before is looked at.
    """
    try:
        shape = json.loads(_read_config(path))["output_features"]["action"]["shape"]
        (length,) = shape
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return length if type(length) is int and length > 0 else None


def _read_config(path: str) -> bytes:
    file = Path(path) / "config.json"
    if not file.is_file():
        downloaded = try_to_load_from_cache(path, "config.json")
        if not isinstance(downloaded, str):
            raise FileNotFoundError(file)
        file = Path(downloaded)
    with file.open("rb") as config:
        return config.read(_LARGEST_CONFIG_BYTES)


def _files_in(path: str) -> tuple[tuple[str, int, int], ...]:
    folder = Path(path)
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries))
