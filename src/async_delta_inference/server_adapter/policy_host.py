"""The one place that touches LeRobot's `PolicyServer`, private methods included."""

from __future__ import annotations

import logging
import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["load_policy_server_module"]

_MODULE = "lerobot.async_inference.policy_server"
_import_lock = threading.Lock()


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


def _quiet_logger(name: str, log_to_file: bool = True) -> logging.Logger:
    return logging.getLogger(name)
