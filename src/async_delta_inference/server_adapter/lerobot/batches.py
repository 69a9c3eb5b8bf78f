"""Several sessions' observations in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.server_adapter.device import Fetched, SideStream
from async_delta_inference.server_adapter.lerobot.asking import Way
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.server_adapter.lerobot.noise import RandomState, random_state
from async_delta_inference.server_adapter.lerobot.row_noise import RowNoise, row_noise
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession
from async_delta_inference.transport.policy import Answer, Launched, Request

__all__ = ["Together", "together_of"]


@dataclass(frozen=True, eq=False)
class _Row:
    """One request as the policy is given it.

    Args:
        session: Whose it is.
        request: The request.
        batch: What the policy sees, (1, ...) each; with a history (1, T, ...).
        noise: What it would draw for it; None where it draws none.
        state: The generators after that, where the next inference begins with them; else None.
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

    @property
    def way_back(self) -> tuple[Any, ...]:
        """Chunks of rows with the same can be postprocessed together."""
        return id(self.session.around.postprocess), self.session.spec.actions_per_chunk

    def tensors(self) -> Iterator[torch.Tensor]:
        """What was made for it."""
        for value in (*self.batch.values(), self.noise):
            if isinstance(value, torch.Tensor):
                yield value


class Together:
    """Asks one policy for the chunks of several sessions, with the noise that each would have alone.

    Where the policy is on a GPU, what can be done for the next batch before this one is answered, above all the copies
    of its frames, has a stream of its own: it runs beside the forward pass that is under way.

    Args:
        loaded: Its policy keeps nothing from one inference to the next but a history, which is given anew.
        noise: How its noise is drawn; None where it draws none.
    """

    def __init__(self, loaded: LoadedPolicy, noise: RowNoise | None) -> None:
        self._loaded = loaded
        self._draw = noise
        self._has_history = loaded.identity.policy_type == "diffusion"
        self._inputs = set(loaded.config.input_features or {})
        self._beside = SideStream(loaded.device)
        self._prepared: dict[LeRobotSession, _Row | Exception] = {}

    def prepare(self, request: Request) -> None:
        """Begin with a request that is in the next batch or a later one; what that raises is kept until then."""
        session = _session_of(request)
        try:
            with torch.inference_mode(), self._loaded.autocast(), self._beside:
                self._prepared[session] = self._row(request)
        except Exception as exc:  # noqa: BLE001 - raised when it is this request's turn
            # Without what its frames hold, which may be what there was no memory for.
            self._prepared[session] = exc.with_traceback(None)

    def has_prepared(self, request: Request) -> bool:
        """Whether `prepare` was called for it."""
        return _session_of(request) in self._prepared

    def forget(self, session: LeRobotSession) -> None:
        """The session is over."""
        self._prepared.pop(session, None)

    def launch(self, requests: Sequence[Request]) -> Launched:
        """Begin to answer, without waiting for the device.

        One chunk per request, equal to what each would get alone but for the last bits: sums are in another order.

        Raises:
            Exception: They cannot be asked together, or the policy raises; none of them has drawn anything then.
        """
        # All of it at once: what a batch that fails leaves behind would be a later batch's.
        prepared = [self._prepared.pop(_session_of(request), None) for request in requests]
        with torch.inference_mode(), self._loaded.autocast():
            rows = [self._row_of(*pair) for pair in zip(requests, prepared, strict=True)]
            self._beside.join(tensor for row in rows for tensor in row.tensors())
            fetches = [fetch for alike in _alike(rows, lambda row: row.shapes).values() for fetch in self._begin(alike)]
        for row in rows:
            if row.session.settle():
                row.request.release()
        return _Batch(rows, fetches)

    def _begin(self, rows: Sequence[_Row]) -> Iterator[tuple[list[_Row], Fetched]]:
        """Rows, and what waits for their actions (B, n, A)."""
        chunks = self._ask(rows)
        for some in _alike(rows, lambda row: row.way_back).values():
            # An index would be copied to the device, and that waited for.
            theirs = chunks if len(some) == len(rows) else torch.cat([chunks[i : i + 1] for i in _places(some, rows)])
            around, count = some[0].session.around, some[0].session.spec.actions_per_chunk
            yield some, around.postprocess.begin(theirs[:, :count])

    def _row_of(self, request: Request, prepared: _Row | Exception | None) -> _Row:
        if isinstance(prepared, Exception):
            raise prepared
        return self._row(request) if prepared is None else prepared

    def _row(self, request: Request) -> _Row:
        session, observation = _session_of(request), request.observation
        # Its slot is given back once the batch is under way: should that fail, each is asked by itself.
        seen = session.inputs(observation, lambda: None)
        newest = dict(seen[-1])
        if not session.around.prepare.makes_new_memory:
            newest = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in newest.items()}
        if self._has_history:
            seen = [seen[0]] * (session.n_obs_steps - len(seen)) + seen
            newest |= {key: torch.stack([batch[key] for batch in seen], dim=1) for key in self._inputs & set(newest)}
        _mark(stages.PREPROCESS, request)
        if self._draw is None:
            return _Row(session, request, newest, None, None)
        session.before_noise(observation)
        noise = self._draw()
        return _Row(session, request, newest, noise, random_state() if session.noise_goes_on else None)

    def _ask(self, rows: Sequence[_Row]) -> torch.Tensor:
        """(B, n, A), not yet postprocessed."""
        policy = self._loaded.policy
        batch = {key: _joined([row.batch[key] for row in rows]) for key in rows[0].batch}
        given = {} if self._draw is None else {"noise": _joined([row.noise for row in rows])}
        if self._has_history:
            policy.reset()  # With a history of its own it would look at that one.
        chunks: torch.Tensor = policy.predict_action_chunk(batch, **given)
        return chunks


class _Batch:
    """See `Launched`.

    Args:
        rows: In the order of the answers.
        fetches: Some of them, and what waits for their actions (B, n, A).
    """

    def __init__(self, rows: Sequence[_Row], fetches: Sequence[tuple[list[_Row], Fetched]]) -> None:
        self._rows = rows
        self._fetches = fetches

    def __call__(self) -> Sequence[Answer]:
        answers: dict[LeRobotSession, Answer] = {}
        for some, fetch in self._fetches:
            for row, chunk in zip(some, fetch(), strict=True):
                answers[row.session] = _finish(row, chunk)
        return [answers[row.session] for row in self._rows]

    def is_done(self) -> bool:
        return all(fetch.is_done() for _, fetch in self._fetches)


def _finish(row: _Row, chunk: NDArray[np.float32]) -> Answer:
    if row.state is not None:
        row.session.after_noise(row.state)
    _mark(stages.FORWARD, row.request)
    return row.session.finished(row.request.observation, chunk)


def together_of(loaded: LoadedPolicy, way: Way) -> Together | None:
    """How several sessions are asked at once; None where that is not possible, and each is asked by itself."""
    noise = row_noise(loaded.policy, loaded.identity.policy_type)
    if noise is None and (way.remembers or way.draws):
        return None
    return Together(loaded, noise)


def _alike(rows: Sequence[_Row], likeness: Callable[[_Row], Any]) -> dict[Any, list[_Row]]:
    groups: dict[Any, list[_Row]] = {}
    for row in rows:
        groups.setdefault(likeness(row), []).append(row)
    return groups


def _places(some: Sequence[_Row], rows: Sequence[_Row]) -> list[int]:
    return [rows.index(row) for row in some]


def _session_of(request: Request) -> LeRobotSession:
    assert isinstance(request.session, LeRobotSession)
    return request.session


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
