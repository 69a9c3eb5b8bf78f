"""``async-delta-robot-client``: ``python -m lerobot.async_inference.robot_client``, which takes ``shm://NAME``, too."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from async_delta_inference.command_line import parse_arguments, run_command
from async_delta_inference.errors import ConfigError, MissingExtraError

__all__ = ["main"]

_PROGRAM = "async-delta-robot-client"
_MODULE = "lerobot.async_inference.robot_client"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the flags are LeRobot's.

    Returns:
        0; 2 for a user's mistake; 1 for any other error.
    """
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    module, utilities = _load(_MODULE), _load("lerobot.utils.import_utils")
    from async_delta_inference.robot_client.installation import install

    install()
    utilities.register_third_party_plugins()
    module.async_client(parse_arguments(module.RobotClientConfig, arguments, _PROGRAM))
    return 0


def _load(name: str) -> Any:
    """A module of LeRobot's.

    Raises:
        ConfigError: The installed LeRobot has no RobotClient.
        MissingExtraError: LeRobot, or what it needs for this, is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("lerobot."):
            raise ConfigError(
                f"the installed LeRobot has no RobotClient ({exc.name} is missing): {_PROGRAM} needs LeRobot 0.6.1"
            ) from exc
        raise MissingExtraError("lerobot", _PROGRAM) from exc
