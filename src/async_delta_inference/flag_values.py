"""What the words after a flag mean, by the type that it is declared with: text is taken word for word.

draccus reads every value as YAML, in which ``yes`` is True, ``020000`` is 8192, ``open drawer #2`` loses its end and
``Task: pick`` is a dictionary. Here that is left for lists, dictionaries and whatever else has no plain form.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from async_delta_inference.errors import ConfigError

__all__ = ["flag_types", "home_expanded", "plain_value"]

_NOTHING = ("null", "none")


def flag_types(config_class: type, flag: str, given: Mapping[str, str]) -> set[Any]:
    """The types that a flag may be declared with: of a choice, those of the chosen class, else of all of them.

    Args:
        config_class: A dataclass.
        flag: Such as ``env.task``.
        given: All flags of the command line, by which choices are known.
    """
    owners: list[Any] = [config_class]
    found: set[Any] = set()
    *parents, last = flag.split(".")
    path = ""
    for name in parents:
        path = f"{path}.{name}".lstrip(".")
        owners = [owner for hint in _hints(owners, name) for owner in _classes(hint, given.get(f"{path}.type"))]
    if last == "type" and any(hasattr(owner, "get_known_choices") for owner in owners):
        return {str}
    for hint in _hints(owners, last):
        found |= set(_members(hint))
    return found


def plain_value(flag: str, text: str, declared: set[Any]) -> Any:
    """The value of a flag whose type has a plain form, else `NotImplemented`: that is for YAML.

    Args:
        flag: For messages.
        text: As on the command line.
        declared: Its types.

    Raises:
        ConfigError: It is to be a number and is none.
    """
    kinds = declared - {type(None)}
    if not kinds:
        return NotImplemented
    if all(_is_text(kind) for kind in kinds):
        # What a folder is called nobody but the user knows; where home is, the shell does not say after '='.
        return home_expanded(flag, text) if all(isinstance(k, type) and issubclass(k, Path) for k in kinds) else text
    if kinds <= {int, float}:
        if type(None) in declared and text.lower() in _NOTHING:
            return None
        return _number(flag, text, whole=kinds == {int})
    return NotImplemented


def home_expanded(flag: str, path: str | Path) -> Path:
    """A path whose ``~`` is the home folder.

    Raises:
        ConfigError: Nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        raise ConfigError(f"--{flag}={path}: {exc} (see --help for the flags)") from exc


def _number(flag: str, text: str, *, whole: bool) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError as exc:
        needed = "a whole number" if whole else "a number"
        raise ConfigError(f"--{flag} must be {needed}, got {text!r} (see --help for the flags)") from exc


def _hints(owners: Iterable[Any], name: str) -> Iterator[Any]:
    for owner in owners:
        if dataclasses.is_dataclass(owner):
            hints = typing.get_type_hints(owner)
            if name in hints:
                yield hints[name]


def _classes(hint: Any, choice: str | None) -> Iterator[Any]:
    """The dataclasses that a flag with further flags below it may stand for."""
    for member in _members(hint):
        if hasattr(member, "get_known_choices"):
            known = member.get_known_choices()
            yield from [known[choice]] if choice in known else known.values()
        yield member


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return all(isinstance(value, str) for value in typing.get_args(kind))
    return isinstance(kind, type) and (kind is str or issubclass(kind, Path))
