"""The simulated client: evaluates a served policy in gymnasium environments.

Each name loads its module when it is first used: ``python -m async_delta_inference.client`` must come to its first line
before anything else is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_delta_inference.client.config import SimClientConfig
    from async_delta_inference.client.control.aggregation import register_aggregate_function
    from async_delta_inference.client.environments.base import Environment, StepResult
    from async_delta_inference.client.environments.episode import EpisodeSpec
    from async_delta_inference.client.environments.registry import register_environment
    from async_delta_inference.client.evaluation import Evaluation, evaluate
    from async_delta_inference.client.record.observers import RunObserver
    from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
    from async_delta_inference.client.sim_client import SimClient

__all__ = [
    "Environment",
    "Evaluation",
    "EpisodeResult",
    "EpisodeSpec",
    "EvaluationResult",
    "RunObserver",
    "SimClient",
    "SimClientConfig",
    "StepResult",
    "evaluate",
    "register_aggregate_function",
    "register_environment",
]

_LAZY = {
    "Environment": "environments.base",
    "EpisodeResult": "record.results",
    "EpisodeSpec": "environments.episode",
    "Evaluation": "evaluation",
    "EvaluationResult": "record.results",
    "RunObserver": "record.observers",
    "SimClient": "sim_client",
    "SimClientConfig": "config",
    "StepResult": "environments.base",
    "evaluate": "evaluation",
    "register_aggregate_function": "control.aggregation",
    "register_environment": "environments.registry",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
