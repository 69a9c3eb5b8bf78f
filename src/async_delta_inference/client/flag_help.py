"""What ``async-delta-eval --help`` prints, at once: LeRobot, which takes seconds to load, is read and not imported."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.command_line import command_parser
from async_delta_inference.errors import ConfigError

__all__ = ["asks_for_help", "environment_help", "evaluation_help", "named_environment"]

_USAGE = """
  %(prog)s --env.type=TYPE --pretrained_name_or_path=CHECKPOINT [flags]
  %(prog)s --preset=lerobot-eval [the flags of lerobot-eval: --policy.path, --policy.NAME=VALUE, --eval.n_episodes, ...]
  %(prog)s --env.type=TYPE --server_address=ADDRESS --actions_per_chunk=N [flags]
  %(prog)s --env.type=TYPE --help"""

_OWN_TYPES = ["gymnasium"]
_REGISTERED = re.compile(r"""^@EnvConfig\.register_subclass\(\s*(?:name=)?["'](\w+)["']""", re.MULTILINE)
_PLUGIN = re.compile(r"lerobot[-_]env[-_]\w", re.IGNORECASE)


@dataclass
class Environment:
    """Each has flags of its own, such as --env.task: add --help to --env.type=TYPE to list them."""

    type: str
    """Which one; their names stand at the end."""


@dataclass(kw_only=True)
class Evaluation(SimClientConfig):
    """Evaluate a served policy in simulation."""

    env: Environment = field(metadata={"help": "environment"})


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line wants help, wherever the flag stands."""
    return "-h" in arguments or "--help" in arguments


def named_environment(arguments: Sequence[str]) -> str:
    """The value of ``--env.type``; empty where there is none."""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        if name == "--env.type":
            return value if equals else following
    return ""


def evaluation_help(program: str) -> str:
    """Every flag but those of the environments, and which environments there are."""
    parser = command_parser(Evaluation, program)
    parser.usage = _USAGE
    for group in parser._action_groups:
        # What follows the first sentences of a docstring is for programmers.
        group.description = (group.description or "").partition("\n\n")[0] or None
    parser.epilog = f"Values of --env.type: {_types_in_words()}"
    return parser.format_help()


def environment_help(program: str, env_config: Any, name: str) -> str:
    """The flags of one environment.

    Args:
        program: The command's name.
        env_config: LeRobot's ``EnvConfig``, which every environment's configuration is registered with.
        name: Of the environment.

    Raises:
        ConfigError: No environment is called that.
    """
    if name not in (known := sorted(env_config.get_known_choices())):
        raise ConfigError(f"--env.type={name}: there is no such environment; there are {', '.join(known)}")

    parser = command_parser(make_dataclass("OneEnvironment", [("env", env_config.get_choice_class(name))]), program)
    parser.usage = f"\n  %(prog)s --env.type={name} [flags of the environment, below] [flags that --help lists]"
    return parser.format_help()


def _types_in_words() -> str:
    types = {*_lerobots_types(), *_OWN_TYPES}
    unread = []
    for plugin in distributions():
        if _PLUGIN.match(plugin.metadata["Name"] or ""):
            found = [
                name
                for file in plugin.files or ()
                for name in _types_registered_in(Path(str(plugin.locate_file(file))))
            ]
            types.update(found)
            unread += [] if found else [plugin.metadata["Name"]]
    return ", ".join(sorted(types)) + (f", and those of {', '.join(sorted(unread))}" if unread else "")


def _lerobots_types() -> list[str]:
    spec = importlib.util.find_spec("lerobot")
    return _types_registered_in(Path(spec.origin).parent / "envs" / "configs.py") if spec and spec.origin else []


def _types_registered_in(module: Path) -> list[str]:
    """From the module's text."""
    return _REGISTERED.findall(module.read_text()) if module.suffix == ".py" and module.is_file() else []
