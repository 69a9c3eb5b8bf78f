"""lerobot's own client, imported without the logs/ folder that its module makes."""

from __future__ import annotations

import sys
from typing import Any


def robot_client_class() -> Any:
    return robot_client_module().RobotClient


def robot_client_module() -> Any:
    name = "lerobot.async_inference.robot_client"
    if name not in sys.modules:
        import lerobot.async_inference.helpers as helpers

        original = helpers.get_logger
        helpers.get_logger = lambda name, log_to_file=True: original(name, log_to_file=False)
        try:
            __import__(name)
        finally:
            helpers.get_logger = original
    return sys.modules[name]
