"""How actions of overlapping chunks become one, by name, with LeRobot's names and weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.errors import ConfigError

__all__ = ["AggregateFunction", "aggregate_function", "register_aggregate_function"]

AggregateFunction = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""From the queued and the incoming actions of the same timesteps, both float32 (k, A), to the ones to execute."""

_FUNCTIONS: dict[str, AggregateFunction] = {
    "weighted_average": lambda old, new: 0.3 * old + 0.7 * new,
    "latest_only": lambda old, new: new,
    "average": lambda old, new: 0.5 * old + 0.5 * new,
    "conservative": lambda old, new: 0.7 * old + 0.3 * new,
}


def aggregate_function(name: str) -> AggregateFunction:
    """The function of that name.

    Raises:
        ConfigError: Unknown; the known ones are listed.
    """
    try:
        return _FUNCTIONS[name]
    except KeyError:
        known = ", ".join(_FUNCTIONS)
        raise ConfigError(f"unknown --aggregate_fn_name={name}; known are: {known}") from None


def register_aggregate_function(name: str, function: AggregateFunction) -> None:
    """Make ``--aggregate_fn_name=name`` known, or replace what it meant.

    Args:
        name: As on the command line.
        function: See `AggregateFunction`; must return float32 of the same shape.
    """
    _FUNCTIONS[name] = function
