"""Environments by LeRobot's ``--env.type``.

An environment is added with one registered function from its LeRobot configuration to its tasks::

    @register_environment("pusht")
    def make_pusht(config: PushtEnv) -> list[Environment]: ...

A package registers without being imported first by an entry point in the group ``async_delta_inference.environments``
whose name is the type and whose object is such a function. A type that nobody registered is run as LeRobot builds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.guarded import simulator_errors
from async_delta_inference.client.environments.headless import choose_renderer
from async_delta_inference.client.environments.kept_contexts import keep_rendering_contexts
from async_delta_inference.errors import ConfigError

__all__ = ["ENTRY_POINT_GROUP", "EnvironmentFactory", "EnvironmentOptions", "make_environments", "register_environment"]

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


@dataclass(frozen=True)
class EnvironmentOptions:
    """What is wished of any environment, besides its own configuration.

    Args:
        success_key: Where the info of a step says whether the task is solved; None: where environments usually do.
        render_device: EGL device that renders; None: see `choose_renderer`.
        render_on_demand: Whether to leave out frames that nobody looks at, where that is proven to change nothing.
    """

    success_key: str | None = None
    render_device: int | None = None
    render_on_demand: bool = False


def make_environments(env_config: Any, options: EnvironmentOptions | None = None) -> list[Environment]:
    """The tasks that a LeRobot environment configuration names, in order.

    Whatever they are, a renderer is chosen before their simulator is imported.

    Args:
        env_config: A ``lerobot.envs.configs.EnvConfig``.
        options: Further wishes.

    Raises:
        ConfigError: An unknown task, or an environment that cannot be served; says what is missing.
        EpisodeError: Whoever registered it failed in some other way.
        MissingExtraError: Its simulator is not installed.
    """
    options = options or EnvironmentOptions()
    choose_renderer(options.render_device)
    flag = f"--env.type={env_config.type}"
    with simulator_errors(flag, "its construction"):
        environments = _factory_of(str(env_config.type))(env_config)
    keep_rendering_contexts()
    if not environments:
        raise ConfigError(f"{flag} names no tasks")
    _obey_episode_length(env_config, environments, flag)
    if options.render_on_demand:
        for environment in environments:
            if hasattr(environment, "render_on_demand"):
                environment.render_on_demand()
    if options.success_key is not None:
        _listen_for(options.success_key, environments, flag)
    return environments


def _obey_episode_length(env_config: Any, environments: list[Environment], flag: str) -> None:
    """A length that somebody asked for, and that LeRobot does not pass on; the default is its environment's affair."""
    wanted = getattr(env_config, "episode_length", None)
    if wanted is None or wanted == getattr(type(env_config), "episode_length", None):
        return
    for environment in environments:
        if environment.max_episode_steps < wanted:
            raise ConfigError(
                f"--env.episode_length={wanted}: {flag} ends after {environment.max_episode_steps} steps by itself"
            )
        environment.max_episode_steps = wanted


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
