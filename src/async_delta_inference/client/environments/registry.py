"""Environments by LeRobot's ``--env.type``.

An environment is added with one registered function from its LeRobot configuration to its tasks::

    @register_environment("pusht")
    def make_pusht(config: PushtEnv) -> list[Environment]: ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from async_delta_inference.client.environments.base import Environment

__all__ = ["EnvironmentFactory", "make_environments", "register_environment"]

EnvironmentFactory = Callable[[Any], list[Environment]]

_FACTORIES: dict[str, EnvironmentFactory] = {}


def register_environment(env_type: str) -> Callable[[EnvironmentFactory], EnvironmentFactory]:
    """Decorator: make ``--env.type=env_type`` known, or replace what it meant."""

    def register(factory: EnvironmentFactory) -> EnvironmentFactory:
        _FACTORIES[env_type] = factory
        return factory

    return register


def make_environments(env_config: Any) -> list[Environment]:
    """The tasks that a LeRobot environment configuration names, in order, none of them built yet.

    Raises:
        ConfigError: An unknown task, or an environment that cannot be served; says what is missing.
        MissingExtraError: Its simulator is not installed.
    """
    raise NotImplementedError  # filled in with the environments
