"""What a step of a gymnasium environment gave, checked where it comes in. Success is heard, never guessed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from async_delta_inference.client.environments.base import StepResult
from async_delta_inference.errors import EpisodeError

__all__ = ["SUCCESS_KEYS", "heard_success", "step_result"]

SUCCESS_KEYS = ("is_success", "success", "succeed")
"""What environments call it, in their ``info`` or in the ``final_info`` within it; the first that is there counts."""


def step_result(
    name: str, reward: Any, terminated: Any, truncated: Any, info: Any, success_keys: Sequence[str] = SUCCESS_KEYS
) -> StepResult:
    """The outcome that a step's values tell.

    Args:
        name: Of the environment, for messages.
        reward: A number, or an array of one.
        terminated: Yes or no: a bool, a number that is 0 or 1, or an array of one.
        truncated: Likewise.
        info: A mapping.
        success_keys: Where it may say whether the task is solved.

    Raises:
        EpisodeError: A value is not of its kind; says what was given and what is needed.
    """
    if not isinstance(info, Mapping):
        raise EpisodeError(f"{name} gave an info of {_shown(info)} in step; needed is a dictionary")
    return StepResult(
        reward=_number(name, "reward", reward),
        terminated=_yes_or_no(name, "terminated", terminated),
        truncated=_yes_or_no(name, "truncated", truncated),
        success=heard_success(name, info, success_keys),
    )


def heard_success(name: str, info: Mapping[str, Any], keys: Sequence[str] = SUCCESS_KEYS) -> bool | None:
    """Whether the task is solved, as an environment's info says; None where it does not.

    Raises:
        EpisodeError: It says something that is neither yes nor no.
    """
    for place in _places(info):
        for key in keys:
            if place.get(key) is not None:
                return _yes_or_no(name, f"info[{key!r}]", place[key])
    return None


def _places(info: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The info of an episode's last step first: of an environment that resets itself, the other is the next one's."""
    final = info.get("final_info")
    if isinstance(final, (list, tuple, np.ndarray)) and len(final) == 1:
        final = final[0]
    if isinstance(final, Mapping):
        yield final
    yield info


def _number(name: str, what: str, value: Any) -> float:
    array = _as_array(value)
    if array is None or array.size != 1 or array.dtype.kind not in "biuf" or not math.isfinite(array.item()):
        raise EpisodeError(f"{name} gave a {what} of {_shown(value)} in step; needed is a finite number")
    return float(array.item())


def _yes_or_no(name: str, what: str, value: Any) -> bool:
    array = _as_array(value)
    if array is None or array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise EpisodeError(f"{name} gave {what} = {_shown(value)} in step; needed is yes or no, as a bool")
    return bool(array.item())


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    """A number, or an array of one, whoever's class it is: torch tensors are asked for their value, too."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except Exception:  # noqa: BLE001 - foreign classes raise what they like: it is no number
        return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
