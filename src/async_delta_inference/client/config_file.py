"""``--config_path``: flags in a file, in our words or in lerobot-eval's, or the ``run.yaml`` that a run has left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from async_delta_inference.client.record.run_file import what_differs
from async_delta_inference.command_line import read_config_file
from async_delta_inference.errors import ConfigError

__all__ = ["ConfigFile", "read_config"]

_FLAG = "--config_path"
_LEROBOTS = ("policy", "eval", "job_name", "trust_remote_code", "preset")
"""What stands in a file as lerobot-eval reads it, and is a flag of another name here."""

_OF_ONE_RUN = ("output_dir", "overwrite", "resume", "check")
"""Where a run wrote: the next one writes somewhere else."""

_CHECKPOINT = ("pretrained_name_or_path", "policy.path", "policy.pretrained_path")
_DELAYS = ("inference_delay", "inference_delay_s", "inference_delay_trace")
_SERVER = ("transport", "server_address")
_REPLACED: dict[str, tuple[str, ...]] = {
    "clock": _DELAYS,
    "env.type": ("env",),
    **dict.fromkeys(_DELAYS, _DELAYS),
    **dict.fromkeys(_SERVER, _SERVER),
}
"""What a flag that is given anew would contradict."""


class ConfigFile:
    """A command line, and what the file says that it names.

    Args:
        words: The command line without the file, and before it what the file says in LeRobot's words.
        settings: The rest of the file, by our flags' names.
        notes: What differs today from the run that left the file; a line each.
    """

    def __init__(self, words: list[str], settings: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        self.words = words
        self.settings = settings
        self.notes = notes


def read_config(arguments: Sequence[str], program: str) -> ConfigFile:
    """Take ``--config_path`` out of a command line, and read the file.

    Raises:
        ConfigError: It cannot be read, or a preset is given besides the whole configuration of a run.
        MissingExtraError: The packages that read it are not installed.
    """
    words, path = _without_path(arguments)
    if path is None:
        return ConfigFile(words, {})
    found = read_config_file(path, program)
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    if isinstance(found.get("configuration"), dict) and "versions" in found:
        if "preset" in given:
            raise ConfigError(f"{_FLAG}={path} says every flag of a run: leave --preset out, and change single flags")
        settings = _of_a_run(found, given)
        notes = what_differs(found if not given.intersection(_CHECKPOINT) else {**found, "checkpoint": None})
    else:
        settings, notes = found, []
    first = [word for name in _LEROBOTS if name in settings for word in _as_words(name, settings.pop(name))]
    if "policy_overrides" not in given:
        first += [f"--policy.{text}" for text in settings.pop("policy_overrides", None) or ()]
    return ConfigFile([*first, *words], settings, notes)


def _without_path(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    words = list(arguments)
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == _FLAG:
            following = words[position + 1 : position + 2]
            del words[position : position + (1 if equals else 2)]
            return words, value if equals else "".join(following)
    return words, None


def _of_a_run(run: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """The flags of a run, but for those that are given anew or contradict what is."""
    settings = {name: value for name, value in run["configuration"].items() if name not in _OF_ONE_RUN}
    delays = list(run.get("inference_delay_steps") or ())
    if settings.get("inference_delay") == "auto" and len(delays) == 1 and "resume" not in given:
        settings["inference_delay"] = str(delays[0])  # What was measured; --resume looks it up by itself.
    replaced = {other for name in given for other in _REPLACED.get(name, ())}
    return {name: value for name, value in settings.items() if name not in replaced}


def _as_words(name: str, value: Any) -> list[str]:
    """As on the command line: ``{"policy": {"path": "x"}}`` is ``--policy.path=x``."""
    if name in ("policy", "eval") and isinstance(value, Mapping):
        return [word for key, inner in value.items() for word in _as_words(f"{name}.{key}", inner)]
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}"]
