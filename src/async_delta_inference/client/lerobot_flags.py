"""LeRobot's spelling of flags, so that a command line of lerobot-eval works here with its first word changed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from async_delta_inference.errors import ConfigError

__all__ = ["ASYNCHRONOUS", "in_our_words", "is_lerobots"]

ASYNCHRONOUS = (
    "note: this run is asynchronous; --preset=lerobot-eval gives lerobot-eval's own episodes, where the simulator waits"
)
"""Said where a command line is written as for lerobot-eval, and does not say which of the two is meant."""

_PRESET = "--preset"
_PRESETS = {
    "lerobot-eval": [
        "--clock=simulated",
        "--inference_delay=0",
        "--chunk_size_threshold=0",
        "--aggregate_fn_name=latest_only",
        "--on_starvation=wait",
        "--noise=stream",
        "--n_episodes=50",
    ]
}
"""What each stands for; a flag that is given besides counts."""

_SAME = {
    "--policy.path": "--pretrained_name_or_path",
    "--policy.pretrained_path": "--pretrained_name_or_path",
    "--policy.type": "--policy_type",
    "--policy.device": "--policy_device",
    "--eval.n_episodes": "--n_episodes",
}
_WITHOUT_EFFECT = ("--eval.batch_size", "--eval.use_async_envs", "--job_name", "--trust_remote_code")
"""How lerobot-eval runs its episodes, and what it calls a run: the episodes are the same."""


def is_lerobots(arguments: Sequence[str]) -> bool:
    """Whether a command line is written as for lerobot-eval."""
    return any(word.startswith(("--policy.", "--eval.")) for word in arguments)


def in_our_words(arguments: Sequence[str]) -> list[str]:
    """The same command line with LeRobot's flags in our spelling, and a preset as what it stands for.

    Raises:
        ConfigError: A preset is not known, or a flag of lerobot-eval's has no counterpart.
    """
    ours: list[str] = []
    first: list[str] = []
    overrides: list[str] = []
    words = list(arguments)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if _is_translated(flag) and not equals:
            value = words.pop(0) if words else ""
        if flag == _PRESET:
            first = _preset(value)
        elif flag in _SAME:
            ours.append(f"{_SAME[flag]}={value}")
        elif flag.startswith("--policy."):
            overrides.append(f"{flag.removeprefix('--policy.')}={value}")
        elif flag.startswith("--eval.") and flag not in _WITHOUT_EFFECT:
            raise ConfigError(f"{flag} is lerobot-eval's and has no counterpart here (see --help for the flags)")
        elif flag not in _WITHOUT_EFFECT:
            ours.append(flag + equals + value)
    if overrides:
        ours.append(f"--policy_overrides={json.dumps(overrides)}")
    return first + ours


def _is_translated(flag: str) -> bool:
    return flag == _PRESET or flag in _WITHOUT_EFFECT or flag.startswith(("--policy.", "--eval."))


def _preset(name: str) -> list[str]:
    if name not in _PRESETS:
        raise ConfigError(f"unknown --preset={name}; known are: {', '.join(_PRESETS)}")
    return list(_PRESETS[name])
