"""Environments by LeRobot's ``--env.type``.

An environment is added with one registered function from its LeRobot configuration to its tasks::

    @register_environment("pusht")
    def make_pusht(config: PushtEnv) -> list[Environment]: ...

A package registers without being imported first by an entry point in the group ``async_delta_inference.environments``
whose name is the type and whose object is such a function. A type that nobody registered is run as LeRobot builds it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.guarded import simulator_errors
from async_delta_inference.errors import ConfigError

__all__ = ["ENTRY_POINT_GROUP", "EnvironmentFactory", "make_environments", "register_environment"]

ENTRY_POINT_GROUP = "async_delta_inference.environments"

EnvironmentFactory = Callable[[Any], list[Environment]]

_PACKAGE = "async_delta_inference.client.environments"
_BUILTIN = {
    "aloha": f"{_PACKAGE}.aloha",
    "libero": f"{_PACKAGE}.libero",
    "libero_plus": f"{_PACKAGE}.libero",
    "metaworld": f"{_PACKAGE}.metaworld",
    "pusht": f"{_PACKAGE}.pusht",
}
_factories: dict[str, EnvironmentFactory] = {}


def register_environment(env_type: str) -> Callable[[EnvironmentFactory], EnvironmentFactory]:
    """Decorator: make ``--env.type=env_type`` known, or replace what it meant."""

    def register(factory: EnvironmentFactory) -> EnvironmentFactory:
        _factories[env_type] = factory
        return factory

    return register


def make_environments(env_config: Any, *, success_key: str | None = None) -> list[Environment]:
    """The tasks that a LeRobot environment configuration names, in order.

    Args:
        env_config: A ``lerobot.envs.configs.EnvConfig``.
        success_key: Where the info of a step says whether the task is solved; None: where environments usually do.

    Raises:
        ConfigError: An unknown task, or an environment that cannot be served; says what is missing.
        EpisodeError: Whoever registered it failed in some other way.
        MissingExtraError: Its simulator is not installed.
    """
    flag = f"--env.type={env_config.type}"
    with simulator_errors(flag, "its construction"):
        environments = _factory_of(str(env_config.type))(env_config)
    if not environments:
        raise ConfigError(f"{flag} names no tasks")
    if success_key is not None:
        _listen_for(success_key, environments, flag)
    return environments


def _listen_for(success_key: str, environments: list[Environment], flag: str) -> None:
    for environment in environments:
        if not hasattr(environment, "success_keys"):
            raise ConfigError(f"--success_key={success_key}: {flag} says by itself what success is")
        environment.success_keys = (success_key,)


def _factory_of(env_type: str) -> EnvironmentFactory:
    """Somebody's registration, else ours, else a package's entry point, else LeRobot's environment as it is."""
    if env_type not in _factories and env_type in _BUILTIN:
        import_module(_BUILTIN[env_type])
    if env_type in _factories:
        return _factories[env_type]
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=env_type):
        factory: EnvironmentFactory = entry.load()
        return factory
    return _make_unregistered


def _make_unregistered(env_config: Any) -> list[Environment]:
    from async_delta_inference.client.environments.construction import build_tasks, refuse_own_processors
    from async_delta_inference.client.environments.lerobot_env import LeRobotEnvironment

    tasks = build_tasks(env_config)
    refuse_own_processors(env_config)
    return [LeRobotEnvironment(task) for task in tasks]
