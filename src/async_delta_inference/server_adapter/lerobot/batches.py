"""Several sessions' observations in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from async_delta_inference import stages
from async_delta_inference.server_adapter.lerobot.asking import Way
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.server_adapter.lerobot.noise import RandomState, random_state
from async_delta_inference.server_adapter.lerobot.row_noise import RowNoise, row_noise
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession
from async_delta_inference.transport.policy import Answer, Request

__all__ = ["Together", "together_of"]


@dataclass(frozen=True)
class _Row:
    """One request as the policy is given it.

    Args:
        session: Whose it is.
        request: The request.
        batch: What the policy sees, (1, ...) each; with a history (1, T, ...).
        noise: What it would draw for it; None where it draws none.
        state: The generators after that.
    """

    session: LeRobotSession
    request: Request
    batch: dict[str, Any]
    noise: torch.Tensor | None
    state: RandomState | None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Rows with the same can be put together: instructions are as long as their tokens."""
        return tuple((key, v.shape) for key, v in self.batch.items() if isinstance(v, torch.Tensor))


class Together:
    """Asks one policy for the chunks of several sessions, with the noise that each would have alone.

    Args:
        loaded: Its policy keeps nothing from one inference to the next but a history, which is given anew.
        noise: How its noise is drawn; None where it draws none.
    """

    def __init__(self, loaded: LoadedPolicy, noise: RowNoise | None) -> None:
        self._loaded = loaded
        self._draw = noise
        self._has_history = loaded.identity.policy_type == "diffusion"
        self._inputs = set(loaded.config.input_features or {})

    def __call__(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """One chunk per request, equal to what each would get alone but for the last bits: sums are in another order.

        Raises:
            Exception: They cannot be asked together, or the policy raises; none of them has drawn anything then.
        """
        with torch.inference_mode(), self._loaded.autocast():
            rows = [self._row(request) for request in requests]
            chunks: dict[int, torch.Tensor] = {}
            for shapes in dict.fromkeys(row.shapes for row in rows):
                alike = [i for i, row in enumerate(rows) if row.shapes == shapes]
                for i, chunk in zip(alike, self._ask([rows[i] for i in alike]), strict=True):
                    chunks[i] = chunk[None]
            return [self._finish(row, chunks[i]) for i, row in enumerate(rows)]

    def _row(self, request: Request) -> _Row:
        session, observation = request.session, request.observation
        assert isinstance(session, LeRobotSession)
        seen = session.inputs(observation, lambda: None)
        # The next one is written where this one's images are.
        newest = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in seen[-1].items()}
        if self._has_history:
            seen = [seen[0]] * (session.n_obs_steps - len(seen)) + seen
            newest |= {key: torch.stack([batch[key] for batch in seen], dim=1) for key in self._inputs & set(newest)}
        _mark(stages.PREPROCESS, request)
        if self._draw is None:
            return _Row(session, request, newest, None, None)
        session.before_noise(observation)
        return _Row(session, request, newest, self._draw(), random_state())

    def _ask(self, rows: Sequence[_Row]) -> torch.Tensor:
        """(B, n, A), not yet postprocessed."""
        policy = self._loaded.policy
        batch = {key: _joined([row.batch[key] for row in rows]) for key in rows[0].batch}
        given = {} if self._draw is None else {"noise": _joined([row.noise for row in rows])}
        if self._has_history:
            policy.reset()  # With a history of its own it would look at that one.
        chunks: torch.Tensor = policy.predict_action_chunk(batch, **given)
        return chunks

    def _finish(self, row: _Row, chunk: torch.Tensor) -> Answer:
        if row.state is not None:
            row.session.after_noise(row.state)
        _mark(stages.FORWARD, row.request)
        return row.session.finish(row.request.observation, chunk[:, : row.session.spec.actions_per_chunk])


def together_of(loaded: LoadedPolicy, way: Way) -> Together | None:
    """How several sessions are asked at once; None where that is not possible, and each is asked by itself."""
    noise = row_noise(loaded.policy, loaded.identity.policy_type)
    if noise is None and (way.remembers or way.draws):
        return None
    return Together(loaded, noise)


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
