"""A worker: one simulator at a time, its control loop, and its own session with the server."""

from __future__ import annotations

import faulthandler
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.control.aggregation import aggregate_function
from async_delta_inference.client.control.chunk_source import ChunkSource
from async_delta_inference.client.control.device import check_device
from async_delta_inference.client.control.loop import ControlLoop
from async_delta_inference.client.environments.base import Environment, StepResult
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.guarded import GuardedEnvironment
from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.client.record.delays import read_recorded_delays
from async_delta_inference.client.record.events import EpisodeEnded, EpisodeStarted, Stepped
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.output_folder import OutputFolder
from async_delta_inference.client.record.results import EpisodeResult
from async_delta_inference.client.record.videos import VideoRecorder
from async_delta_inference.client.run.calibration import measure_inference_delay
from async_delta_inference.client.run.checkpoint import local_checkpoint
from async_delta_inference.client.run.clocks import make_clock
from async_delta_inference.client.run.first_look import FirstLook
from async_delta_inference.client.run.repeatability import taken_together, warn_unless_repeatable
from async_delta_inference.client.run.session_spec import session_spec
from async_delta_inference.errors import (
    AsyncDeltaError,
    ConfigError,
    EpisodeError,
    FeatureMismatchError,
    PolicyError,
    TransportError,
)
from async_delta_inference.transport import Computation, Transport, TransportOptions, open_transport

__all__ = ["Alarmed", "Connect", "Described", "Failed", "Line", "Ready", "RunEpisode", "WorkerSetup", "live", "work"]

_HEARTBEAT_S = 0.25


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is told once.

    Args:
        index: Which worker, from 0.
        config: The flags.
        output_dir: Where its videos go.
    """

    index: int
    config: SimClientConfig
    output_dir: Path


@dataclass(frozen=True, slots=True)
class Connect:
    """To the worker: open a session.

    Args:
        uri: Of the server.
        options: Deadlines.
        delay: Inference delay in steps where it was measured; None: measure it, if the flags ask for that.
    """

    uri: str
    options: TransportOptions
    delay: int | None


@dataclass(frozen=True, slots=True)
class RunEpisode:
    """To the worker: run it.

    Args:
        spec: The episode.
    """

    spec: EpisodeSpec


@dataclass(frozen=True, slots=True)
class Described:
    """From the worker: its environments are there, and fit the checkpoint.

    Args:
        episodes: All of the evaluation, in order.
        fps: Control steps per second.
    """

    episodes: tuple[EpisodeSpec, ...]
    fps: float


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: it has a session.

    Args:
        policy: What the server says that it serves.
        spoken: How observations travel, in words.
        delays: Inference delays in steps.
        computation: How the policy computes, as the server says.
    """

    policy: str
    spoken: str
    delays: tuple[int, ...]
    computation: Computation


@dataclass(frozen=True, slots=True)
class Alarmed:
    """From the worker: its first environment differs from what the policy was trained with.

    Args:
        alarms: How, a line each.
    """

    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker.

    Args:
        what: Who failed; the worker ends unless it was the server.
        reason: In words.
    """

    what: Literal["usage", "mismatch", "simulator", "server", "policy"]
    reason: str


class Line(Protocol):
    """Between a worker and whoever started it: a pipe, or what stands for one."""

    def send(self, obj: Any, /) -> None:
        """Say something."""

    def recv(self) -> Any:
        """Wait for what the other side says.

        Raises:
            EOFError: It is gone.
        """


def work(line: Line, setup: WorkerSetup) -> None:
    """The whole life of a worker that has a process for itself.

    Raises:
        EOFError: Whoever started it is gone, or needs it no more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    live(line, setup)


def live(line: Line, setup: WorkerSetup) -> None:
    """The whole life of a worker: until its line ends, or something failed that is not the server.

    Raises:
        EOFError: Whoever started it is gone, or needs it no more.
    """
    worker = _Worker(line, setup)
    try:
        while worker.goes_on:
            worker.obey(line.recv())
    finally:
        worker.close()


class _Worker(RunObserver):
    def __init__(self, line: Line, setup: WorkerSetup) -> None:
        self.goes_on = True
        self._line = line
        self._setup = setup
        self._config = setup.config
        self._folder = OutputFolder(setup.output_dir)
        self._videos = VideoRecorder(self._folder, setup.config.n_videos)
        self._first_look = FirstLook(setup.config, lambda alarms: line.send(Alarmed(tuple(alarms))))
        self._environments: list[Environment] = []
        self._built: Environment | None = None
        self._transport: Transport | None = None
        self._loop: ControlLoop | None = None
        self._repeatable: bool | None = None
        self._steps = 0
        self._told_s = 0.0
        self._safely(self._describe)

    def obey(self, command: Any) -> None:
        """One command."""
        if isinstance(command, Connect):
            self._safely(lambda: self._connect(command))
        elif isinstance(command, RunEpisode):
            self._safely(lambda: self._run(command.spec))
        else:
            raise EOFError

    def close(self) -> None:
        """The session first: the server need not wait for a simulator."""
        if self._transport is not None:
            self._transport.close()
        for environment in self._environments:
            environment.close()

    def _safely(self, action: Any) -> None:
        what: Literal["usage", "mismatch", "simulator", "server", "policy"]
        try:
            action()
            return
        except ConfigError as exc:
            what, reason = "usage", str(exc)
        except FeatureMismatchError as exc:
            what, reason = "mismatch", str(exc)
        except PolicyError as exc:
            what, reason = "policy", str(exc)
        except TransportError as exc:
            what, reason = "server", f"{type(exc).__name__}: {exc}"
        except (AsyncDeltaError, MemoryError) as exc:
            what, reason = "simulator", str(exc) or type(exc).__name__
        self.goes_on = what == "server"
        self._line.send(Failed(what, " ".join(reason.split())))

    def _describe(self) -> None:
        config = self._config
        check_device(config.client_device)
        if config.check_repeatable and self._setup.index == 0:
            self._repeatable = warn_unless_repeatable(self._make_environments, config.seed)
        self._environments = self._make_environments()
        checkpoint = None
        if config.pretrained_name_or_path:
            checkpoint = local_checkpoint(config.pretrained_name_or_path, shares_files=config.shares_files)
        self._first_look.checkpoint = checkpoint
        self._spec = session_spec(config, self._environments, checkpoint)
        episodes = [
            environment.episode(index, config.seed + index)
            for environment in self._environments
            for index in range(config.n_episodes)
        ]
        self._line.send(Described(tuple(episodes), config.fps or self._environments[0].fps))

    def _make_environments(self) -> list[Environment]:
        made = make_environments(self._config.env, self._config.environment_options())
        return [GuardedEnvironment(environment) for environment in made]

    def _connect(self, command: Connect) -> None:
        if self._transport is not None:
            self._transport.close()
        config = self._config
        self._transport = transport = open_transport(command.uri, command.options)
        transport.connect(self._spec)
        source = ChunkSource(transport)
        queue = ActionQueue(self._spec.action_dim, aggregate_function(config.aggregate_fn_name))
        fps = config.fps or self._environments[0].fps

        def measure() -> int:
            if command.delay is not None:
                return command.delay
            task = config.task or self._environments[0].task_description
            return measure_inference_delay(transport, source, queue, task, fps, config.inference_timeout_s)

        trace = config.inference_delay_trace
        clock = make_clock(config, fps, None if trace is None else read_recorded_delays(trace), measure)
        self._loop = ControlLoop(config.control_options(), transport, source, clock, queue, self, self._alive)
        policy = transport.description or f"{config.policy_type} from {config.pretrained_name_or_path}"
        self._line.send(Ready(policy, transport.spoken, clock.delays, transport.computation))

    def _run(self, spec: EpisodeSpec) -> None:
        environment = next(e for e in self._environments if (e.task_group, e.task_id) == spec.key[:2])
        if self._built not in (None, environment):
            assert self._built is not None
            self._built.close()  # One simulator at a time: LIBERO's take 3 GB each.
        self._built = environment
        assert self._loop is not None
        result = self._loop.run_episode(environment, spec, self._config.task)
        if result is None:
            raise EpisodeError(f"{spec.name} was stopped")
        self._videos.episode_ended(environment, result)
        unwritten = tuple((str(path), reason) for path, reason in self._folder.unwritten.items())
        self._folder.unwritten.clear()
        repeatable = taken_together([self._repeatable, getattr(environment, "repeatable", None)])
        self._line.send(EpisodeEnded(self._setup.index, result, unwritten, repeatable))

    # As the loop's observer.

    def episode_started(self, environment: Environment, episode: int) -> None:
        self._first_look.episode_started(environment, episode)
        self._videos.episode_started(environment, episode)
        self._steps = 0
        spec = environment.episode(episode, self._config.seed + episode)
        self._line.send(EpisodeStarted(self._setup.index, spec, environment.max_episode_steps))
        self._told_s = time.monotonic()

    def stepped(self, environment: Environment, outcome: StepResult) -> None:
        self._videos.stepped(environment, outcome)
        self._steps += 1

    def episode_ended(self, environment: Environment, result: EpisodeResult) -> None:
        """Not called by the loop."""

    def _alive(self) -> bool:
        """The loop asks at every step, and twice a second while it waits for the server: it does not hang."""
        now_s = time.monotonic()
        if now_s - self._told_s > _HEARTBEAT_S:
            self._told_s = now_s
            self._line.send(Stepped(self._setup.index, self._steps))
        return True
