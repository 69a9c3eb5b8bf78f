"""Builds LeRobot's environments, with LeRobot's own code, and takes the single environment out of each vector."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from async_delta_inference.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["LeRobotTask", "build_tasks", "refuse_own_processors", "require_packages"]

BROUGHT_BY = {
    "ale_py": "ale-py",
    "Box2D": "gymnasium[box2d]",
    "dm_control": "shimmy[dm-control]",
    "gym_hil": "gym-hil",
    "gymnasium_robotics": "gymnasium-robotics",
    "highway_env": "highway-env",
    "mani_skill": "mani-skill",
    "minigrid": "minigrid",
    "mujoco": "gymnasium[mujoco]",
    "ogbench": "ogbench",
    "panda_gym": "panda-gym",
    "pygame": "gymnasium[classic-control]",
    "shimmy": "shimmy[dm-control]",
}
"""What pip calls the packages of environments, where it is not what Python calls them or needs an extra."""


@dataclass(frozen=True)
class LeRobotTask:
    """One entry of what ``lerobot.envs.make_env`` returns.

    Args:
        group: Suite or family.
        index: The task's number within its group.
        env: The gymnasium environment, built as for ``lerobot-eval`` with one environment per task.
        rebuild: Builds it once more.
        fps: Control steps per simulated second.
        configuration: How it was made, in words.
    """

    group: str
    index: int
    env: gymnasium.Env[Any, Any]
    rebuild: Callable[[], gymnasium.Env[Any, Any]]
    fps: float
    configuration: str = ""


def require_packages(extra: str, *packages: str, what: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Raises:
        MissingExtraError: One is not.
    """
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(extra, what)


def build_tasks(env_config: Any) -> list[LeRobotTask]:
    """The tasks of a LeRobot environment configuration, in LeRobot's order.

    Args:
        env_config: A ``lerobot.envs.configs.EnvConfig``.

    Raises:
        ConfigError: LeRobot cannot build it, or it is fetched from the hub; the message says why.
        MissingExtraError: LeRobot is not installed.
    """
    require_packages("lerobot", "lerobot", "gymnasium", what="an environment")
    from lerobot.envs.configs import HubEnvConfig
    from lerobot.envs.factory import make_env

    if isinstance(env_config, HubEnvConfig):
        raise ConfigError(
            f"--env.type={env_config.type} runs code fetched from the hub, which is not supported: install it as a "
            "package and register it with register_environment()"
        )
    with _refusals_as_config_errors(env_config.type), contextlib.redirect_stdout(io.StringIO()):
        groups = make_env(env_config, n_envs=1, use_async_envs=False)
    return [
        _task_of(vector, group, index, env_config)
        for group, vectors in groups.items()
        for index, vector in vectors.items()
    ]


def _task_of(vector: Any, group: str, index: int, env_config: Any) -> LeRobotTask:
    from gymnasium.vector import SyncVectorEnv

    if not isinstance(vector, SyncVectorEnv) or vector.num_envs != 1:
        raise ConfigError(f"environment {group}/{index} is a {type(vector).__name__}; needed is a SyncVectorEnv of one")
    return LeRobotTask(
        group,
        index,
        env=vector.envs[0],
        rebuild=vector.env_fns[0],
        fps=float(env_config.fps),
        configuration=f"{env_config!r} {group}/{index}",
    )


@contextlib.contextmanager
def _refusals_as_config_errors(env_type: str) -> Iterator[None]:
    """What LeRobot raises about a configuration is as varied as its environments: all of it is the user's to mend."""
    try:
        yield
    except ModuleNotFoundError as exc:
        raise ConfigError(f"--env.type={env_type} {_needed(exc)}") from exc
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # also those who end the program: SystemExit
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise ConfigError(f"--env.type={env_type} cannot be built: {reason}") from exc


def _needed(exc: ModuleNotFoundError) -> str:
    """What is missing, and the command that brings it where it has a name of its own."""
    named = re.search(r"(?:No module named '|import of )([\w.]+)", str(exc))
    module = (exc.name or (named[1] if named else "")).partition(".")[0]
    if not module:
        return f"needs a package that is not installed: {' '.join(str(exc).split())}"
    if module in BROUGHT_BY:
        return f"needs the package {module}, which is not installed: pip install '{BROUGHT_BY[module]}'"
    return f"needs the package {module}, which is not installed, or not under that name"


def refuse_own_processors(env_config: Any) -> None:
    """Check that an environment which nobody registered needs no conversion that is LeRobot's alone to know.

    Raises:
        ConfigError: LeRobot would convert its observations or actions.
    """
    with _refusals_as_config_errors(env_config.type):
        pipelines = env_config.get_env_processors()
    steps = [type(step).__name__ for pipeline in pipelines for step in pipeline.steps]
    if steps:
        raise ConfigError(
            f"--env.type={env_config.type} converts its observations or actions with {', '.join(steps)}: register it "
            "with register_environment() and a conversion that does the same"
        )
