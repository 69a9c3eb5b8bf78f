"""Several sessions' observations in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from async_delta_inference import stages
from async_delta_inference.server_adapter.lerobot.asking import Way
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession
from async_delta_inference.transport.policy import Answer, Request

__all__ = ["answer_together"]


def answer_together(loaded: LoadedPolicy, way: Way, requests: Sequence[Request]) -> Sequence[Answer]:
    """One chunk per request, equal to what each would get alone but for the last bits: sums are taken in another order.

    Args:
        loaded: A policy that remembers nothing and draws nothing.
        way: How it is asked.
        requests: Their observations have the same shapes.

    Raises:
        Exception: They cannot be asked together, or the policy raises.
    """
    sessions = [request.session for request in requests]
    with torch.no_grad(), loaded.autocast():
        inputs: list[dict[str, Any]] = []
        for session, request in zip(sessions, requests, strict=True):
            assert isinstance(session, LeRobotSession)
            (batch,) = session.inputs(request.observation, lambda: None)
            # The next one is written where this one's images are.
            inputs.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
            _mark(stages.PREPROCESS, request)
        together = {key: _joined([batch[key] for batch in inputs]) for key in inputs[0]}
        with torch.inference_mode():
            chunks = way([together], max(session.spec.actions_per_chunk for session in sessions))  # type: ignore[attr-defined]
        answers: list[Answer] = []
        for i, (session, request) in enumerate(zip(sessions, requests, strict=True)):
            assert isinstance(session, LeRobotSession)
            _mark(stages.FORWARD, request)
            answers.append(session.finish(request.observation, chunks[i : i + 1, : session.spec.actions_per_chunk]))
    return answers


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return [element for value in values for element in value]
    return first


def _mark(stage: str, request: Request) -> None:
    if (recorder := stages.recorder) is not None:
        recorder.mark(stage, request.observation.timestep)
