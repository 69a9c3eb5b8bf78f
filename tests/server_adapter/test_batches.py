"""Several sessions in one forward pass: what each would get alone, its own noise included, but for the last bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pusht_policies import build_for_pusht, observe, skip_without_package, spec
from small_act import begin, request

from async_delta_inference.errors import PolicyError
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy

DDIM = {"noise_scheduler_type": "DDIM"}
DEVIATION = 80.0
"""Of the actions, by the statistics of the small policies."""


class Table:
    """Sessions with one policy, each with a seed of its own, and whatever they are answered."""

    def __init__(self, policy: LeRobotPolicy, folder: Path, noise: str, count: int = 3) -> None:
        self.policy = policy
        self.sessions = [policy.open(spec(folder, noise=noise, seed=seed)) for seed in range(count)]
        for session in self.sessions:
            begin(session)

    def ask(self, timesteps: range, *, together: bool) -> list[list[np.ndarray]]:
        """By timestep and session."""
        found = []
        for timestep in timesteps:
            seen = [observe(100 * timestep + i, session.n_obs_steps) for i, session in enumerate(self.sessions)]
            for observation in seen:
                observation.timestep = timestep
            requests = [request(*pair) for pair in zip(self.sessions, seen, strict=True)]
            rows = self.policy.infer(requests) if together else [self.policy.infer([one])[0] for one in requests]
            assert all(isinstance(row, np.ndarray) for row in rows), rows
            found.append(rows)
        return found

    def close(self) -> None:
        for session in self.sessions:
            session.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[LeRobotPolicy], list[int]]:
    """Has the forward passes of a policy that is loaded counted: how many rows each has."""

    def watch(policy: LeRobotPolicy) -> list[int]:
        assert policy.loaded is not None
        seen: list[int] = []
        kind = type(policy.loaded.policy)
        ask = kind.predict_action_chunk

        def counted(self: Any, batch: Any, **given: Any) -> Any:
            seen.append(len(batch["observation.state"]))
            return ask(self, batch, **given)

        monkeypatch.setattr(kind, "predict_action_chunk", counted)
        return seen

    return watch


def alone_and_together(folder: Path, noise: str, watch: Callable[[LeRobotPolicy], list[int]]) -> tuple[Any, Any, Any]:
    policy = LeRobotPolicy()
    alone = Table(policy, folder, noise)
    expected = alone.ask(range(3), together=False)
    alone.close()
    table = Table(policy, folder, noise)
    # Asked alone in between, a session goes on with its own noise.
    found = [*table.ask(range(1), together=True), *table.ask(range(1, 2), together=False)]
    seen = watch(policy)
    found += table.ask(range(2, 3), together=True)
    table.close()
    return expected, found, seen


@pytest.mark.parametrize("noise", ["request", "stream"])
@pytest.mark.parametrize(("kind", "changes"), [("act", {}), ("smolvla", {}), ("diffusion", DDIM)])
def test_policies_that_are_given_their_noise_answer_all_in_one_pass(
    kind: str, changes: dict[str, Any], noise: str, tmp_path: Path, passes: Any
) -> None:
    skip_without_package(kind)
    expected, found, seen = alone_and_together(build_for_pusht(kind, tmp_path, **changes), noise, passes)
    assert seen == [3]
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.stack(row), np.stack(other), rtol=0, atol=5e-6 * DEVIATION)


@pytest.mark.parametrize("kind", ["diffusion", "vqbet"])
def test_policies_that_draw_for_themselves_are_asked_one_after_the_other(
    kind: str, tmp_path: Path, passes: Any
) -> None:
    """The former is DDPM, which draws at every step of its denoising."""
    skip_without_package(kind)
    expected, found, seen = alone_and_together(build_for_pusht(kind, tmp_path), "stream", passes)
    assert seen == [1, 1, 1]
    assert [[one.tobytes() for one in row] for row in found] == [[one.tobytes() for one in row] for row in expected]


@pytest.mark.parametrize("noise", ["request", "stream"])
@pytest.mark.parametrize(("kind", "changes"), [("act", {}), ("smolvla", {}), ("diffusion", DDIM)])
def test_what_is_prepared_while_another_batch_is_computed_is_answered_as_alone(
    kind: str, changes: dict[str, Any], noise: str, tmp_path: Path
) -> None:
    """As the host does it for a policy on a GPU: two batches in turn, each prepared before the other is collected."""
    skip_without_package(kind)
    folder = build_for_pusht(kind, tmp_path, **changes)
    policy = LeRobotPolicy()
    alone = Table(policy, folder, noise, 4)
    expected = alone.ask(range(3), together=False)
    alone.close()
    table = Table(policy, folder, noise, 4)
    found: dict[tuple[int, int], np.ndarray] = {}
    released: list[tuple[int, int]] = []
    turns = [(timestep, pair) for timestep in range(3) for pair in ((0, 1), (2, 3))]
    collect: Callable[[], Any] = list
    last: list[tuple[int, int]] = []
    for timestep, pair in turns:
        requests = []
        for i in pair:
            session = table.sessions[i]
            seen = observe(100 * timestep + i, session.n_obs_steps)
            seen.timestep, seen.must_go = timestep, False
            requests.append(request(session, seen, lambda key=(timestep, i): released.append(key)))
            policy.prepare(requests[-1])
        assert (timestep, pair[0]) not in released  # Should the batch fail, each is asked by itself.
        found |= dict(zip(last, collect(), strict=True))
        collect, last = policy.launch(requests), [(timestep, i) for i in pair]
        assert released[-2:] == last
    found |= dict(zip(last, collect(), strict=True))
    table.close()
    for (timestep, i), answer in found.items():
        np.testing.assert_allclose(answer, expected[timestep][i], rtol=0, atol=5e-6 * DEVIATION)


def test_a_session_that_ends_while_it_is_prepared_leaves_nothing(tmp_path: Path) -> None:
    policy = LeRobotPolicy()
    table = Table(policy, build_for_pusht("act", tmp_path), "request", 2)
    policy.prepare(request(table.sessions[0], observe(0)))
    table.close()
    assert policy._together is not None
    assert not policy._together._prepared


def test_a_batch_that_fails_is_asked_one_by_one_though_it_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = LeRobotPolicy()
    table = Table(policy, build_for_pusht("act", tmp_path), "request", 2)
    expected = table.ask(range(1), together=False)[0]
    table.close()
    table = Table(policy, tmp_path, "request", 2)
    assert policy._together is not None
    monkeypatch.setattr(policy._together, "_ask", lambda rows: _run_out_of_memory())
    requests = []
    for i, session in enumerate(table.sessions):
        observation = observe(i)
        observation.timestep = 0
        requests.append(request(session, observation))
        policy.prepare(requests[-1])
    found = policy.launch(requests)()
    assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]
    table.close()


def test_a_batch_of_which_one_cannot_be_prepared_leaves_nothing_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = LeRobotPolicy()
    table = Table(policy, build_for_pusht("act", tmp_path), "request", 3)
    expected = table.ask(range(2), together=False)
    table.close()
    table = Table(policy, tmp_path, "request", 3)
    inputs = table.sessions[0].inputs

    def fail_once(*arguments: Any) -> Any:
        monkeypatch.setattr(table.sessions[0], "inputs", inputs)
        raise ValueError("not this time")

    monkeypatch.setattr(table.sessions[0], "inputs", fail_once)
    for timestep in range(2):
        requests = []
        for i, session in enumerate(table.sessions):
            observation = observe(100 * timestep + i)
            observation.timestep = timestep
            requests.append(request(session, observation))
            if not timestep:
                policy.prepare(requests[-1])
        for one, other in zip(policy.launch(requests)(), expected[timestep], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * DEVIATION)
    table.close()


def test_memory_that_is_too_small_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    policy = LeRobotPolicy()
    table = Table(policy, build_for_pusht("act", tmp_path), "request", 1)
    way = table.sessions[0]._way

    def ask(batches: Any, rows: int) -> Any:
        _run_out_of_memory()

    ask.remembers = ask.draws = False  # type: ignore[attr-defined]
    table.sessions[0]._way = ask
    (answer,) = policy.infer([request(table.sessions[0], observe(0))])
    assert isinstance(answer, PolicyError)
    assert "--max_batch" in str(answer)
    assert "Tried to allocate 20 GiB" in str(answer)
    table.sessions[0]._way = way
    assert isinstance(policy.infer([request(table.sessions[0], observe(1))])[0], np.ndarray)
    table.close()


def _run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
