"""The simulated client: evaluates a served policy in gymnasium environments."""

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
