"""What was found out of an environment once, for as long as neither it nor what it is built on changes."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from async_delta_inference.client.environments.cache_folder import cache_folder
from async_delta_inference.client.environments.frame_proof import FrameProof
from async_delta_inference.whole_files import write_whole

__all__ = ["cached_proof", "identity", "keep_proof"]

logger = logging.getLogger(__name__)

_BUILT_ON = ("async-delta-inference", "lerobot", "gymnasium", "mujoco", "dm-control", "robosuite", "numpy")


def identity(env: Any, configuration: str) -> str:
    """All that a finding depends on, in one hash.

    Args:
        env: A gymnasium environment, wrapped or not: the source files of all its classes count.
        configuration: How it was made.
    """
    parts = [configuration, os.environ.get("MUJOCO_GL", "")]
    parts += [f"{name} {_version(name)}" for name in _BUILT_ON]
    parts += [f"{layer.__class__.__qualname__} {_source_of(type(layer))}" for layer in _layers(env)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def cached_proof(key: str) -> FrameProof | None:
    """What is known of an environment, or None.

    Args:
        key: Its `identity`.
    """
    try:
        return FrameProof(**json.loads(_path_of(key).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep_proof(key: str, proof: FrameProof) -> None:
    """For the next run, unless it is that something failed.

    Args:
        key: The environment's `identity`.
        proof: What was found out.
    """
    if proof.repeatable is None and proof.reason:
        return
    path = _path_of(key)
    try:
        write_whole(path, lambda partial: partial.write_text(json.dumps(asdict(proof))))
    except OSError as exc:  # It is found out again.
        logger.debug("%s is not kept: %s", path, exc)


def _path_of(key: str) -> Path:
    return cache_folder() / "frames" / f"{key}.json"


def _layers(env: Any) -> Iterator[Any]:
    while True:
        yield env
        if not hasattr(env, "env") or env is env.unwrapped:
            return
        env = env.env


def _source_of(class_: type) -> str:
    try:
        file = inspect.getsourcefile(class_)
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except (OSError, TypeError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
