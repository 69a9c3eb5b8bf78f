"""`SimClient`: LeRobot's RobotClient for a simulated robot, and for whole evaluations."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from async_delta_inference.client.compare.stopping import StopRule, stop_rule
from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.control.aggregation import aggregate_function
from async_delta_inference.client.control.chunk_source import ChunkSource
from async_delta_inference.client.control.clock import Clock
from async_delta_inference.client.control.device import check_device
from async_delta_inference.client.control.loop import ControlLoop
from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.guarded import GuardedEnvironment
from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.client.record.delays import RecordedDelays, read_recorded_delays
from async_delta_inference.client.record.observers import Observers, RunObserver
from async_delta_inference.client.record.output_folder import OutputFolder, default_output_dir
from async_delta_inference.client.record.results import EpisodeResult, EvaluationResult
from async_delta_inference.client.record.run_file import describe_run
from async_delta_inference.client.record.stage_trace_file import StageTraceFile
from async_delta_inference.client.reporting import RunRecord, configured_observers
from async_delta_inference.client.run.calibration import measure_inference_delay
from async_delta_inference.client.run.checkpoint import local_checkpoint
from async_delta_inference.client.run.clocks import make_clock
from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.client.run.first_look import FirstLook
from async_delta_inference.client.run.interrupts import KeptInterrupts, interrupts_held, interrupts_kept
from async_delta_inference.client.run.repeatability import taken_together, warn_unless_repeatable
from async_delta_inference.client.run.session_spec import session_spec
from async_delta_inference.errors import ConfigError
from async_delta_inference.transport import LinkOptions, Transport, open_transport

__all__ = ["SimClient"]

logger = logging.getLogger(__name__)


class SimClient:
    """Evaluates a served policy in simulation.

    As RobotClient is used, with a thread of the user's that receives::

        client = SimClient(config)
        client.start()
        threading.Thread(target=client.receive_actions, daemon=True).start()
        client.control_loop(task="")
        client.stop()

    or all in one with `run`, which receives in the control loop's own thread.

    Args:
        config: What to evaluate, where, and how.
        environments: Instead of those that ``config.env`` names.
        transport: Not yet connected; instead of the one that ``config.server_address`` names. It is connected by
            `start` and closed by `stop`.
        observers: Told of every step, episode and run, besides those that the flags ask for.
    """

    def __init__(
        self,
        config: SimClientConfig,
        *,
        environments: Sequence[Environment] | None = None,
        transport: Transport | None = None,
        observers: Iterable[RunObserver] = (),
    ) -> None:
        self.config = config
        default = default_output_dir(getattr(config.env, "type", "env"), config.policy_in_short or "served")
        self._folder = OutputFolder(config.output_dir or default, unique=config.output_dir is None)
        self.result = EvaluationResult()
        """Grows with every episode; complete when `control_loop` returns."""
        self._environments = None if environments is None else [GuardedEnvironment(env) for env in environments]
        self._record = RunRecord(config, self._folder)
        self._first_look = FirstLook(config)
        configured = configured_observers(config, self._folder, self._record)
        self._observer = Observers([self._first_look, *configured, *observers])
        self._server: EmbeddedServer | None = None
        self._repeatable: bool | None = None
        self._stage_trace: StageTraceFile | None = None
        self._transport = transport
        self._source: ChunkSource | None = None
        self._recorded_delays: RecordedDelays | None = None
        self._started = False
        self._source_exists = threading.Event()
        self._stopped = threading.Event()
        # A rendering context belongs to the thread that steps: while the loop runs, it closes the environments itself.
        self._looping = False
        self._looped = False
        self._started_s = 0.0
        self._told = False

    @property
    def running(self) -> bool:
        """False once `stop` was called."""
        return not self._stopped.is_set()

    @property
    def output_dir(self) -> Path:
        """The folder of the results; a default one is settled by `start`, since another run may be as early."""
        return self._folder.path

    @property
    def unwritten(self) -> dict[Path, str]:
        """Files that are not there as they should be, and why: a run does not end for them."""
        return self._folder.unwritten | ({} if self._stage_trace is None else self._stage_trace.unwritten)

    @property
    def fps(self) -> float:
        """Control steps per second."""
        return self.config.fps or self._started_environments()[0].fps

    def start(self) -> bool:
        """Build the environments, start or reach the server, and have it load the policy.

        Returns:
            True; a failure raises, where RobotClient returns False.

        Raises:
            ConfigError: A flag cannot work, the output folder is another run's, or it was started before.
            FeatureMismatchError: Environment and checkpoint do not fit.
            TransportError: The server cannot be reached or refuses the policy.
        """
        if self._started or self._stopped.is_set():
            raise ConfigError("a SimClient starts once: make a new one")
        self._started = True
        try:
            with interrupts_kept():
                self._start()
        except BaseException:
            self.stop()
            raise
        return True

    def _start(self) -> None:
        config = self.config
        # What may be missing first: a server and simulators take a minute to start.
        serves_itself = self._transport is None and config.uri is None
        if serves_itself and not config.pretrained_name_or_path:
            raise ConfigError(
                "name what to evaluate: --pretrained_name_or_path (or --policy.path), or the --server_address of a "
                "server that is there already"
            )
        if config.inference_delay_trace is not None:
            self._recorded_delays = read_recorded_delays(config.inference_delay_trace)
        self._first_look.checkpoint = checkpoint = self._find_checkpoint()
        check_device(config.client_device)
        self._folder.claim(overwrite=config.overwrite, resume=config.resume is not None)
        self._record.begin(describe_run(config, checkpoint, self._recorded_delays))
        if self._transport is None and config.uri is not None:
            self._transport = open_transport(config.uri, config.transport_options())
        if config.trace is not None:
            self._stage_trace = StageTraceFile(config.trace)
        if serves_itself:
            # First, since it loads for as long as the environments do.
            assert config.transport is not None  # resolved by the configuration
            trace = None if self._stage_trace is None else self._stage_trace.server_path
            self._server = EmbeddedServer(
                config.transport, self.output_dir / "server.log", trace, policy_host=config.policy_host
            )
        if self._environments is None:
            if config.check_repeatable:
                self._repeatable = warn_unless_repeatable(self._make_environments, config.seed)
            self._environments = self._make_environments()
        spec = session_spec(config, self._started_environments(), checkpoint)
        if self._server is not None:
            # A child that died does not come back.
            # It takes what certificates are for by itself: a socket that nobody else can reach.
            link = LinkOptions(config.grpc)
            options = replace(config.transport_options(), reconnect_timeout_s=0.0, link=link)
            self._transport = open_transport(self._server.wait_until_ready(config.setup_timeout_s), options)
        assert self._transport is not None
        self._transport.connect(spec)
        self._source = ChunkSource(self._transport)
        self._source_exists.set()

    def _make_environments(self) -> list[GuardedEnvironment]:
        made = make_environments(self.config.env, self.config.environment_options())
        return [GuardedEnvironment(environment) for environment in made]

    def _find_checkpoint(self) -> Path | None:
        """The policy's folder, where this machine has it and the server reads it from here."""
        config = self.config
        if not config.pretrained_name_or_path or self._transport is not None:
            return None
        return local_checkpoint(config.pretrained_name_or_path, shares_files=config.shares_files)

    def receive_actions(self) -> None:
        """Receive in this thread until `stop`; optional, `control_loop` receives by itself otherwise."""
        self._source_exists.wait(self.config.setup_timeout_s)
        if self._source is not None:
            self._source.receive_until_stopped()

    def control_loop(self, task: str = "") -> EvaluationResult:
        """Run every episode of every task.

        Args:
            task: Instruction given to the policy; empty: the configured one, else each environment's own.

        Returns:
            What happened; also in `result`, up to the last whole episode when this raises or is stopped.

        Raises:
            EpisodeError: A simulator failed.
            TransportError: The server failed, or did not answer in time.
        """
        if self._transport is None or self._source is None:
            raise ConfigError("call start() before control_loop()")
        spoken = self._transport.spoken
        self.result = EvaluationResult(fps=self.fps, policy=self._policy_in_words(), spoken=spoken)
        self.result.repeatable = self._repeatable
        self._started_s = time.perf_counter()
        self._looping, self._told = True, False
        try:
            with interrupts_kept() as interrupts:
                self._run_tasks(self._transport, self._source, interrupts, task or self.config.task)
        finally:
            with interrupts_held():
                self._end_loop()
        return self.result

    def _run_tasks(self, transport: Transport, source: ChunkSource, interrupts: KeptInterrupts, task: str) -> None:
        environments = self._started_environments()
        queue = ActionQueue(environments[0].action_dim, aggregate_function(self.config.aggregate_fn_name))
        missing = self._plan(environments)
        self._observer.run_started(environments, self.config.n_episodes)
        clock = self._make_clock(transport, source, queue)
        self.result.inference_delay_steps = clock.delays
        self._record.note_delays(clock.delays)
        self._record.note_computations([transport.computation] if transport.computation else [])

        def running() -> bool:
            interrupts.check()
            return self.running

        rule = stop_rule(self.config.stop_when, self.config.baseline, self._record.described)
        for episode in self.result.episodes:
            self._look(rule, episode)
        loop = ControlLoop(self.config.control_options(), transport, source, clock, queue, self._observer, running)
        for environment in environments:
            self._run_task(loop, environment, [spec for owner, spec in missing if owner is environment], task, rule)

    def run(self) -> EvaluationResult:
        """`start`, `control_loop` and `stop` in one."""
        self.start()
        try:
            return self.control_loop()
        finally:
            self.stop()

    def stop(self) -> None:
        """End the session, the simulators and the embedded server; idempotent, from any thread."""
        self._stopped.set()
        # Each of them, in the reverse of this order, also when one before it failed.
        with interrupts_held(), ExitStack() as stack:
            if not self._looping:
                stack.callback(self._folder.release)
            if self._stage_trace is not None:
                stack.callback(self._stage_trace.finish)
            if self._server is not None:
                stack.callback(self._server.stop)
            if not self._looping:
                stack.callback(self._close_environments)
            if self._transport is not None:
                stack.callback(self._transport.close)
            stack.callback(self._source_exists.set)
            if self._source is not None:
                stack.callback(self._source.stop)

    def _end_loop(self) -> None:
        self.result.eval_s = self._record.earlier_s + time.perf_counter() - self._started_s
        self.result.episodes.sort(key=self._record.position)
        self._looping = False
        with ExitStack() as stack:
            if not self.running:
                stack.callback(self._folder.release)
            stack.callback(self._observer.run_ended, self.result)
            stack.callback(self._close_environments)

    def _close_environments(self) -> None:
        with ExitStack() as stack:
            for environment in self._environments or ():
                stack.callback(environment.close)

    def _plan(self, environments: Sequence[Environment]) -> list[tuple[Environment, EpisodeSpec]]:
        """What is missing: everything, unless this run goes on with an earlier one."""
        if self._looped:
            self._record.restart()
        self._looped = True
        planned = [
            (environment, environment.episode(episode, self.config.seed + episode))
            for environment in environments
            for episode in range(self.config.n_episodes)
        ]
        missing = set(self._record.plan([spec for _, spec in planned]))
        self._record.fold(self.result)
        return [(environment, spec) for environment, spec in planned if spec in missing]

    def _run_task(
        self, loop: ControlLoop, environment: Environment, specs: Sequence[EpisodeSpec], task: str, rule: StopRule
    ) -> None:
        try:
            for spec in specs:
                if not self.running or self._told:
                    return
                result = loop.run_episode(environment, spec, task)
                if result is not None:
                    self._keep(environment, result)
                    self._look(rule, result)
        finally:
            # One simulator at a time: LIBERO's take 3 GB each.
            environment.close()

    def _look(self, rule: StopRule, result: EpisodeResult) -> None:
        """Whether the run has told what it was run for."""
        if not self._told and (told := rule.take(result)):
            self._told = True
            logger.warning("ended after %d episodes: %s", len(self.result.episodes), told)

    def _keep(self, environment: Environment, result: EpisodeResult) -> None:
        """From here on the episode is not lost, whatever ends the run: an interrupt waits until it is written."""
        with interrupts_held():
            self.result.episodes.append(result)
            # Known of those whose frames were tried, too.
            self.result.repeatable = taken_together([self.result.repeatable, getattr(environment, "repeatable", None)])
            self.result.eval_s = self._record.earlier_s + time.perf_counter() - self._started_s
            self._observer.episode_ended(environment, result)
            self._observer.episode_kept(self.result)

    def _policy_in_words(self) -> str:
        """What the server says that it serves, or else what was asked of it."""
        described = self._transport.description if self._transport is not None else ""
        return described or f"{self.config.policy_in_short} from {self.config.pretrained_name_or_path}".lstrip()

    def _started_environments(self) -> Sequence[Environment]:
        if not self._environments:
            raise ConfigError("call start() first")
        return self._environments

    def _make_clock(self, transport: Transport, source: ChunkSource, queue: ActionQueue) -> Clock:
        def measure_delay() -> int:
            task = self.config.task or self._started_environments()[0].task_description
            return measure_inference_delay(transport, source, queue, task, self.fps, self.config.inference_timeout_s)

        earlier = self._record.earlier_delays
        return make_clock(
            self.config, self.fps, self._recorded_delays, (lambda: earlier[0]) if earlier else measure_delay
        )
