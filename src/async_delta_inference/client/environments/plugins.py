"""Every environment that is installed, as a choice of ``--env.type``. Importing this is light; calling it is not."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import distributions
from typing import Any

from async_delta_inference.client.environments.headless import choose_renderer
from async_delta_inference.errors import MissingExtraError

__all__ = ["known_environments"]

logger = logging.getLogger(__name__)

_PREFIX = "lerobot_env_"


def known_environments(what: str = "an environment") -> Any:
    """LeRobot's ``EnvConfig``, after all that registers with it was imported.

    That is: LeRobot's own, packages whose distribution is called ``lerobot_env_*`` or ``lerobot-env-*`` (LeRobot itself
    looks for the former spelling only), and any gymnasium id (``--env.type=gymnasium``). A renderer is chosen first,
    since such packages import their simulators.

    Args:
        what: Cannot be done where LeRobot is missing, for that message.

    Raises:
        MissingExtraError: LeRobot is not installed.
    """
    try:
        from lerobot.envs.configs import EnvConfig
        from lerobot.utils.import_utils import register_third_party_plugins
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", what) from exc

    choose_renderer()
    register_third_party_plugins()
    for name in {str(distribution.metadata["Name"]) for distribution in distributions()}:
        module = name.lower().replace("-", "_")
        if module.startswith(_PREFIX) and not name.startswith(_PREFIX):
            _import(module)
    import_module("async_delta_inference.client.environments.gymnasium_id")
    return EnvConfig


def _import(module: str) -> None:
    try:
        import_module(module)
    except Exception as exc:  # noqa: BLE001 - one that is broken does not stop those that are not
        logger.warning("the plugin %s cannot be imported: %s: %s", module, type(exc).__name__, exc)
