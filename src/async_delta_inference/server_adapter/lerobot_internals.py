"""LeRobot's `policy_server` module, and whether its insides are those that were tested."""

from __future__ import annotations

import inspect
import logging
import sys
import threading
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any

from async_delta_inference.errors import ConfigError

__all__ = [
    "TESTED_VERSIONS",
    "check_attributes",
    "check_internals",
    "load_policy_server_module",
]

TESTED_VERSIONS = ("0.6.1",)
"""Versions of lerobot that the test suite ran with."""

_MODULE = "lerobot.async_inference.policy_server"
_import_lock = threading.Lock()

_INTERNALS = {
    "SendPolicyInstructions": ("self", "request", "context"),
    "_enqueue_observation": ("self", "obs"),
    "_predict_action_chunk": ("self", "observation_t"),
}
"""Methods of PolicyServer that are called by `DrivenPolicyServer`, with their parameters."""

_ATTRIBUTES = (
    "observation_queue",
    "last_processed_obs",
    "_predicted_timesteps",
    "lerobot_features",
    "actions_per_chunk",
    "policy",
    "preprocessor",
    "postprocessor",
)
"""Attributes of PolicyServer that are read or set by `DrivenPolicyServer`."""


def load_policy_server_module() -> ModuleType:
    """Import LeRobot's ``policy_server`` without its side effects.

    The module asks for a logger while it is imported, and LeRobot's ``get_logger`` makes a ``logs/`` folder with a file
    in the current directory and replaces the root logger's handlers. For the time of the import it is exchanged for
    one that does neither; the logger ``policy_server`` is the same object either way.

    Returns:
        The module, with `PolicyServer` and `PolicyServerConfig` in it.
    """
    with _import_lock:
        if loaded := sys.modules.get(_MODULE):
            return loaded
        helpers: Any = import_module("lerobot.async_inference.helpers")
        original = helpers.get_logger
        helpers.get_logger = _quiet_logger
        try:
            return import_module(_MODULE)
        finally:
            helpers.get_logger = original


def check_internals(server_class: type) -> None:
    """Refuse a PolicyServer without the methods that are called here.

    Raises:
        ConfigError: Naming the first one that differs.
    """
    for name, parameters in _INTERNALS.items():
        method = getattr(server_class, name, None)
        found = tuple(inspect.signature(method).parameters) if callable(method) else None
        if found != parameters:
            raise _unfit(f"PolicyServer.{name} takes {found}, expected {parameters}")


def check_attributes(server: object) -> None:
    """Refuse a PolicyServer, made, without the attributes that are read or set here.

    Raises:
        ConfigError: Naming them.
    """
    if missing := [name for name in _ATTRIBUTES if not hasattr(server, name)]:
        raise _unfit(f"PolicyServer has no {', '.join(missing)}")


def _unfit(what: str) -> ConfigError:
    return ConfigError(
        f"lerobot {version('lerobot')} has other internals than this version of async-delta-inference knows: {what}. "
        f"Install lerobot {' or '.join(TESTED_VERSIONS)}, or a newer async-delta-inference"
    )


def _quiet_logger(name: str, log_to_file: bool = True) -> logging.Logger:
    return logging.getLogger(name)
