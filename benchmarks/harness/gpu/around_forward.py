"""Everything but the forward pass: from an observation's capture to its chunk in the client's queue, three stacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.client import SimClientConfig
from async_delta_inference.stage_trace import StageSpan
from harness.client_level import ClientVariant
from harness.gpu.budget import Budget
from harness.gpu.served import STACKS, ClockedServer, ServerHere, ServerThere
from harness.payloads import Payload
from harness.stage_figures import stage_rows
from harness.statistics import Series, median_ratio

__all__ = ["StackVariant", "compare_stacks"]

_REFERENCE = "grpc"


class StackVariant(ClientVariant):
    """One stack, asked by `SimClient` in another process than the server's.

    Args:
        stack: Key of `STACKS`.
        server: Of it.
        payload: What is observed.
        checkpoint: Folder of an ACT.
        device: Of the policy.
    """

    def __init__(self, stack: str, server: ClockedServer, payload: Payload, checkpoint: Path, device: str) -> None:
        series = Series(stack, "copy" if stack == _REFERENCE else "loan", payload.name, "act", level="client")
        super().__init__(server, payload, str(checkpoint), series)  # type: ignore[arg-type]
        self._clocked = server
        self._device = device

    def _config(self) -> SimClientConfig:
        return dataclasses.replace(super()._config(), policy_device=self._device)

    def _add(self, marks: list[stages.Mark], chunks: int, spent_ns: int) -> None:
        """With the forward passes that the clock measured: a mark is made when the host comes back from one."""
        before = len(self.spans)
        super()._add(marks, chunks, spent_ns)
        asked = sorted((at_ns, timestep) for stage, timestep, at_ns in marks if stage == stages.FORWARD)
        measured = {
            timestep: forward.duration_ns
            for (_, timestep), forward in zip(asked, self._clocked.forwards(), strict=True)
        }
        self.spans[before:] = with_forwards(self.spans[before:], measured)
        timesteps = [span.timestep for span in self.spans[before:] if span.stage == stages.FORWARD]
        self.series.forward_ns[-1] = np.array([measured[timestep] for timestep in sorted(timesteps)])


def with_forwards(spans: Sequence[StageSpan], measured_ns: dict[int, int]) -> list[StageSpan]:
    """Spans whose forward passes last as long as measured; the chunk's way back begins then, and ends when it did."""
    moved = []
    added_ns: dict[int, int] = {}
    for span in spans:
        if span.stage == stages.FORWARD:
            added_ns[span.timestep] = measured_ns[span.timestep] - span.duration_ns
            span = dataclasses.replace(span, duration_ns=measured_ns[span.timestep])
        elif span.stage == stages.POSTPROCESS:
            added = added_ns[span.timestep]
            span = dataclasses.replace(span, start_ns=span.start_ns + added, duration_ns=span.duration_ns - added)
        moved.append(span)
    return moved


def compare_stacks(
    payload: Payload,
    checkpoint: Path,
    device: str,
    *,
    chunks: int,
    rounds: int,
    budget: Budget,
    in_this_process: bool = False,
) -> tuple[dict[str, Any], list[Exception]]:
    """Sessions of all stacks in turn, ``rounds`` of each while there is time.

    Args:
        payload: What is observed.
        checkpoint: Folder of an ACT.
        device: Of the policy.
        chunks: Of each session, the warm-up not counted.
        rounds: Sessions of each stack.
        budget: Of this part.
        in_this_process: Whether servers are threads of this process.

    Returns:
        ``rows``, ``stages``, and ``most_action_difference`` to PolicyServer's of any stack and round: the three are
        asked with the same observations. And what stacks raised, which then have no further round.
    """
    errors: list[Exception] = []
    with ExitStack() as stack:
        servers = _started(stack, ServerHere if in_this_process else ServerThere, errors)
        variants = [StackVariant(name, server, payload, checkpoint, device) for name, server in servers.items()]
        going = list(variants)
        for number in range(rounds):
            if not going or (number and not budget.allows(budget.longest_step_s)):
                break
            with budget.step():
                for variant in _in_turn(going, number):
                    try:
                        variant.run_round(chunks)
                    except Exception as exc:  # noqa: BLE001 - told by the caller; the others have their turn
                        errors.append(exc)
                        going.remove(variant)
    measured = [variant for variant in variants if variant.series.rounds]
    series = [variant.series for variant in measured]
    found = {
        "rows": [_row(one, series) for one in series],
        "stages": [row for variant in measured for row in stage_rows(variant.series, variant.spans)],
        "most_action_difference": _most_difference([variant.actions for variant in measured]),
    }
    return found, errors


def _started(
    stack: ExitStack, make: type[ServerHere] | type[ServerThere], errors: list[Exception]
) -> dict[str, ClockedServer]:
    """All at once: each loads lerobot anew. Without those that do not start."""
    with ThreadPoolExecutor(len(STACKS)) as pool:
        starting = {name: pool.submit(make, name) for name in STACKS}
    servers: dict[str, ClockedServer] = {}
    for name, future in starting.items():
        try:
            servers[name] = stack.enter_context(future.result())
        except Exception as exc:  # noqa: BLE001 - as above
            errors.append(exc)
    return servers


def _in_turn(variants: list[StackVariant], number: int) -> list[StackVariant]:
    turn = number % len(variants)
    return [*variants[turn:], *variants[:turn]]


def _row(series: Series, others: Sequence[Series]) -> dict[str, Any]:
    total_us = np.concatenate(series.rounds) / 1000
    forward_us = np.concatenate(series.forward_ns) / 1000
    rest_us = total_us - forward_us
    reference = next((other for other in others if other.transport == _REFERENCE), None)
    ratio = None if reference is None else median_ratio(reference.round_overheads(), series.round_overheads())
    return {
        "stack": series.transport,
        "chunks": len(total_us),
        "rounds": len(series.rounds),
        **_percentiles("total", total_us),
        **_percentiles("forward", forward_us),
        **_percentiles("without_forward", rest_us),
        "grpc_without_forward_to_this": None if ratio is None else dataclasses.asdict(ratio),
    }


def _percentiles(what: str, durations_us: NDArray[np.float64]) -> dict[str, float]:
    return {f"{what}_p{percent}_us": round(float(np.percentile(durations_us, percent)), 1) for percent in (50, 99)}


def _most_difference(actions: Sequence[Sequence[NDArray[np.float32]]]) -> float | None:
    if len(actions) < 2:
        return None
    first, *others = actions
    pairs = [pair for other in others for pair in zip(first, other, strict=False)]
    return max((float(np.abs(ours - theirs).max()) for ours, theirs in pairs), default=0.0)
