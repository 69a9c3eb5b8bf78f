"""``--stop_when``: an evaluation that ends as soon as it has told what it was run for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_delta_inference.client.compare.runs import FinishedRun, check_comparable, check_same_start, read_finished
from async_delta_inference.client.compare.sequential import DifferenceTest, RateInterval
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.errors import ConfigError

__all__ = ["StopRule", "check_stop_when", "stop_rule"]

_INTERVAL = re.compile(r"interval<(\d+(?:\.\d+)?)")


def check_stop_when(text: str | None, baseline: Path | None) -> None:
    """Refuse what is no rule, before anything is run.

    Raises:
        ConfigError: One line that names the flag.
    """
    if text is None:
        if baseline is not None:
            raise ConfigError("--baseline needs --stop_when=difference: else nothing is compared with it")
        return
    if text == "difference":
        if baseline is None:
            raise ConfigError("--stop_when=difference needs --baseline=RUN: the run that this one is compared with")
        return
    match = _INTERVAL.fullmatch(text)
    if match is None or not 0 < float(match[1]) < 100:
        raise ConfigError(
            f"--stop_when must be difference, or interval<N with N points between 0 and 100, got {text!r}"
        )


class StopRule:
    """Takes the episodes of a run in their order, and says when there is no need for more. This one never does.

    The order must not depend on the outcomes: in that of their ends, short successes would come first.
    """

    def take(self, episode: EpisodeResult) -> str:
        """The next episode; returns why the run may end, or an empty text."""
        return ""


class _Difference(StopRule):
    def __init__(self, baseline: FinishedRun) -> None:
        self._baseline = baseline
        self._test = DifferenceTest()
        self._pairs = 0

    def take(self, episode: EpisodeResult) -> str:
        other = self._baseline.episodes.get(episode.spec.key)
        if other is None or other.success is None or episode.success is None:
            return ""
        check_same_start(other.spec, episode.spec)
        self._pairs += 1
        if not self._test.take(other.success, episode.success):
            return ""
        return f"the success rate differs from that of {self._baseline.folder}, told after {self._pairs} pairs " + (
            f"(sequential p = {self._test.p_value:.3g})"
        )


class _Interval(StopRule):
    def __init__(self, points: float) -> None:
        self._points = points
        self._interval = RateInterval()

    def take(self, episode: EpisodeResult) -> str:
        if episode.success is None or 100 * self._interval.take(episode.success) >= self._points:
            return ""
        low, high = 100 * self._interval.low, 100 * self._interval.high
        return f"the success rate is known to {self._points:g} points: {low:.1f} to {high:.1f} %"


def stop_rule(text: str | None, baseline: Path | None, described: Mapping[str, Any]) -> StopRule:
    """The rule that a configuration asks for.

    Args:
        text: As `check_stop_when` takes it.
        baseline: The folder of the run to compare with.
        described: What the run that is beginning is, as ``run.yaml`` has it.

    Raises:
        ConfigError: The baseline cannot be read, or ran other episodes.
    """
    if text is None:
        return StopRule()
    if baseline is None:
        return _Interval(float(text.partition("<")[2]))
    run = read_finished(baseline)
    check_comparable(run, FinishedRun(Path("this run"), described, {}, 0))
    return _Difference(run)
