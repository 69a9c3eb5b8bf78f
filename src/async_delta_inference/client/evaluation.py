"""`Evaluation`: episodes over many simulators, as an iterator of events; `evaluate`: all of it in one call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.record.delays import read_recorded_delays
from async_delta_inference.client.record.events import EpisodeEnded, EpisodeGivenUp, Event, RunEnded
from async_delta_inference.client.record.output_folder import OutputFolder, default_output_dir
from async_delta_inference.client.record.results import EvaluationResult
from async_delta_inference.client.record.run_file import describe_run
from async_delta_inference.client.reporting import RunRecord
from async_delta_inference.client.run.checkpoint import local_checkpoint
from async_delta_inference.client.run.interrupts import interrupts_held
from async_delta_inference.client.run.process_runner import ProcessRunner
from async_delta_inference.client.run.repeatability import taken_together
from async_delta_inference.client.run.runner import Runner
from async_delta_inference.errors import ConfigError, MissingExtraError
from async_delta_inference.transport.registry import backend, split_uri

__all__ = ["Evaluation", "evaluate"]

logger = logging.getLogger(__name__)


class Evaluation:
    """An evaluation whose simulators are processes of their own, of this machine's or of a Ray cluster's; iterate over
    it, and it runs.

    ::

        for event in Evaluation(config, n_envs=4):
            if isinstance(event, EpisodeEnded): ...

    An episode is in the output folder before its event comes. Leaving the loop ends the run; what is complete stays.

    Args:
        config: What to evaluate, where, and how.
        n_envs: Simulators at the same time, or ``auto``; none: as the configuration says, else one.
    """

    def __init__(self, config: SimClientConfig, *, n_envs: int | str | None = None) -> None:
        self._config = _plain(config, n_envs)
        default = default_output_dir(getattr(config.env, "type", "env"), config.policy_type or "served")
        self._folder = OutputFolder(config.output_dir or default, unique=config.output_dir is None)
        self._record = RunRecord(self._config, self._folder)
        self._worker_unwritten: dict[Path, str] = {}
        self._missing = 0
        self.result = EvaluationResult()
        """Grows with every episode, in the order of the plan."""

    @property
    def output_dir(self) -> Path:
        """The folder of the results; a default one is settled when the run begins."""
        return self._folder.path

    @property
    def unwritten(self) -> dict[Path, str]:
        """Files that are not there as they should be, and why: a run does not end for them."""
        return self._worker_unwritten | self._folder.unwritten

    def __iter__(self) -> Iterator[Event]:
        """Run it.

        Raises:
            ConfigError: A flag cannot work, the output folder is another run's, or environment and policy do not fit.
            EpisodeError: No simulator works here.
            PolicyError: The policy raised.
            TransportError: The server cannot be reached, or dies again and again.
        """
        checkpoint = self._check()
        self._folder.claim(overwrite=self._config.overwrite, resume=self._config.resume is not None)
        with ExitStack() as stack:
            stack.callback(self._folder.release)
            trace = self._config.inference_delay_trace
            delays = None if trace is None else read_recorded_delays(trace)
            self._record.begin(describe_run(self._config, checkpoint, delays))
            stack.callback(self._end)
            earlier = self._record.earlier_delays
            self._runner = _runner_of(self._config)(
                self._config, self.output_dir, self._plan, earlier[0] if earlier else None
            )
            self._started_s = time.perf_counter()
            events = self._runner.run()
            stack.callback(events.close)  # type: ignore[attr-defined]
            for event in events:
                self._take(event)
                yield event
        yield RunEnded(self.result)

    def _check(self) -> Path | None:
        config = self._config
        if config.uri is None and not config.pretrained_name_or_path:
            raise ConfigError(
                "name what to evaluate: --pretrained_name_or_path (or --policy.path), or the --server_address of a "
                "server that is there already"
            )
        if config.uri is not None and backend(split_uri(config.uri)[0]).listener.reach == "process":
            raise ConfigError(f"{config.uri} cannot be reached from other processes: leave --n_envs out")
        if config.clock == "realtime" and config.n_envs != "1":
            logger.warning(
                "simulators that share cores delay each other, and in the realtime clock that changes results; "
                "--clock=simulated has no such problem"
            )
        if not config.pretrained_name_or_path:
            return None
        return local_checkpoint(config.pretrained_name_or_path, shares_files=config.shares_files)

    def _plan(self, specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        missing = self._record.plan(specs)
        self._record.fold(self.result)
        return missing

    def _take(self, event: Event) -> None:
        """From here on an episode is not lost, whatever ends the run: an interrupt waits until it is written."""
        if not isinstance(event, (EpisodeEnded, EpisodeGivenUp)):
            return
        with interrupts_held():
            if isinstance(event, EpisodeEnded):
                self._worker_unwritten |= {Path(path): reason for path, reason in event.unwritten}
                self._note_delays()
                self._record.note_computations(self._runner.computations)
                self._record.keep(event.result)
                self.result.repeatable = taken_together([self.result.repeatable, event.repeatable])
            else:
                self._record.give_up(event.given_up)
            self._fold()
            self._record.refresh(self.result)

    def _note_delays(self) -> None:
        if self.result.inference_delay_steps != self._runner.delays:
            self.result.inference_delay_steps = self._runner.delays
            self._record.note_delays(self._runner.delays)

    def _fold(self) -> None:
        self._record.fold(self.result)
        self.result.fps = self._runner.fps
        self.result.policy, self.result.spoken = self._runner.policy, self._runner.spoken
        self.result.eval_s = self._record.earlier_s + time.perf_counter() - self._started_s

    def _end(self) -> None:
        with interrupts_held():
            if hasattr(self, "_started_s"):
                self._fold()
            self._record.end(self.result)


def evaluate(
    config: SimClientConfig,
    *,
    n_envs: int | str | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> EvaluationResult:
    """Run an evaluation whose simulators are processes of their own.

    Args:
        config: What to evaluate, where, and how.
        n_envs: Simulators at the same time, or ``auto``; none: as the configuration says, else one.
        on_event: Told of everything that happens, in this thread.

    Returns:
        What happened, with what an earlier run has left where this one goes on with it.

    Raises:
        As `Evaluation` does.
    """
    evaluation = Evaluation(config, n_envs=n_envs)
    for event in evaluation:
        if on_event is not None:
            on_event(event)
    return evaluation.result


def _runner_of(config: SimClientConfig) -> type[Runner]:
    if config.runner == "processes":
        return ProcessRunner
    try:
        from async_delta_inference.client.run.on_ray.ray_runner import RayRunner
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "ray":
            raise
        raise MissingExtraError("ray", "--runner=ray") from exc
    return RayRunner


def _plain(config: SimClientConfig, n_envs: int | str | None) -> SimClientConfig:
    """A copy that can be pickled, whatever class the command line made of it."""
    copied = object.__new__(SimClientConfig)
    for field in fields(SimClientConfig):
        setattr(copied, field.name, getattr(config, field.name))
    copied.n_envs = str(n_envs) if n_envs is not None else config.n_envs or "1"
    copied.check_workers()
    return copied
