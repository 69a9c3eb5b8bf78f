"""LeRobot's spelling of flags, so that a command line of lerobot-eval works here with its first word changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import pairwise

from async_delta_inference.errors import ConfigError

__all__ = ["ASYNCHRONOUS", "in_our_words", "is_lerobots", "note_on_batch_size"]

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
"""What each stands for; a flag that is given besides, on the command line or in a file, counts."""

_SAME = {
    "--policy.path": "--pretrained_name_or_path",
    "--policy.pretrained_path": "--pretrained_name_or_path",
    "--policy.type": "--policy_type",
    "--policy.device": "--policy_device",
    "--eval.n_episodes": "--n_episodes",
}
_BATCH_SIZE = "--eval.batch_size"
_WITHOUT_EFFECT = (_BATCH_SIZE, "--eval.use_async_envs", "--job_name", "--trust_remote_code")
"""How lerobot-eval runs its episodes, and what it calls a run: the episodes are the same."""


def is_lerobots(arguments: Sequence[str]) -> bool:
    """Whether a command line is written as for lerobot-eval."""
    return any(word.startswith(("--policy.", "--eval.")) for word in arguments)


def note_on_batch_size(arguments: Sequence[str]) -> str:
    """What ``--eval.batch_size`` means here, where it asks for several simulators; else nothing."""
    words = [*arguments, ""]
    for flag, following in pairwise(words):
        name, equals, value = flag.partition("=")
        if name == _BATCH_SIZE and (value if equals else following) != "1":
            return (
                f"note: {name} changes nothing: every episode is the one that lerobot-eval runs with 1; "
                "--n_envs=N|auto runs several side by side"
            )
    return ""


def in_our_words(arguments: Sequence[str], settled: Collection[str] = ()) -> list[str]:
    """The same command line with LeRobot's flags in our spelling, and a preset as what it stands for.

    Args:
        arguments: The command line.
        settled: Flags, without their dashes, that a preset leaves as they are.

    Raises:
        ConfigError: A preset is not known, or a flag of lerobot-eval's has no counterpart.
    """
    ours: list[str] = []
    first: list[str] = []
    overrides: dict[str, str] = {}
    words = list(arguments)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if _is_translated(flag) and not equals:
            value = words.pop(0) if words else ""
        if flag == _PRESET:
            first = [word for word in _preset(value) if word[2:].partition("=")[0] not in settled]
        elif flag in _SAME:
            ours.append(f"{_SAME[flag]}={value}")
        elif flag.startswith("--policy."):
            overrides[flag.removeprefix("--policy.")] = value
        elif flag.startswith("--eval.") and flag not in _WITHOUT_EFFECT:
            raise ConfigError(f"{flag} is lerobot-eval's and has no counterpart here (see --help for the flags)")
        elif flag not in _WITHOUT_EFFECT:
            ours.append(flag + equals + value)
    if overrides:
        texts = [f"{name}={value}" for name, value in overrides.items()]
        ours.append(f"--policy_overrides={json.dumps(texts)}")
    return first + ours


def _is_translated(flag: str) -> bool:
    return flag == _PRESET or flag in _WITHOUT_EFFECT or flag.startswith(("--policy.", "--eval."))


def _preset(name: str) -> list[str]:
    if name not in _PRESETS:
        raise ConfigError(f"unknown --preset={name}; known are: {', '.join(_PRESETS)}")
    return list(_PRESETS[name])
