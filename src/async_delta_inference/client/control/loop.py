"""`ControlLoop`: one episode at a time, step by step: ask for chunks, merge them, act.

The observation before step t carries timestep t of its session and is the input for action t. Requests, merges and the
queue all live in the thread that runs the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.client.control.action_queue import ActionQueue
from async_delta_inference.client.control.chunk_source import ChunkSource
from async_delta_inference.client.control.clock import Clock
from async_delta_inference.client.control.device import device_converter
from async_delta_inference.client.control.history import ObservationHistory
from async_delta_inference.client.control.options import ControlOptions
from async_delta_inference.client.control.robot_actions import RobotActions
from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.environments.global_randomness import global_generators_of
from async_delta_inference.client.record.figures import episode_figures
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.record.results import ChunkRecord, EpisodeResult
from async_delta_inference.errors import ConfigError, ProtocolError
from async_delta_inference.transport import ActionChunk, Transport

__all__ = ["ControlLoop"]

_SLICE_S = 0.5
"""How long one wait for a chunk takes before the loop looks whether it was stopped."""
_RUN_AGAIN = 1 << 62


@dataclass(frozen=True, slots=True)
class _Request:
    """An observation that was sent and not yet answered."""

    timestep: int
    step: int
    due_step: int | None
    captured_ns: int
    must_go: bool


class ControlLoop:
    """Runs episodes over one session.

    Args:
        options: The same for every episode.
        transport: Connected.
        source: Chunks of that transport.
        clock: Decides when a chunk takes effect.
        queue: Empty; holds the actions of the whole session, episode after episode.
        observer: Told of every start of an episode and every step; its end is the caller's to tell, who keeps it.
        running: False when the run should stop.

    Raises:
        ConfigError: The policy continues the robot's actions, and further requests may change those that it is told.
    """

    def __init__(
        self,
        options: ControlOptions,
        transport: Transport,
        source: ChunkSource,
        clock: Clock,
        queue: ActionQueue,
        observer: RunObserver,
        running: Callable[[], bool],
    ) -> None:
        if transport.prefix and not options.one_request_in_flight:
            raise ConfigError(
                f"the policy {transport.description} continues the actions that are queued, and with "
                "--one_request_in_flight=false another chunk may change them: leave that flag out"
            )
        self._options = options
        self._transport = transport
        self._source = source
        self._clock = clock
        self._queue = queue
        self._observer = observer
        self._running = running
        self._to_device = device_converter(options.client_device)
        self._history = ObservationHistory(transport.n_obs_steps)
        self._robot_actions = RobotActions(transport.prefix, queue)
        self._episode_number = -1
        self._first_timestep = 0
        self._request: _Request | None = None
        self._asked: dict[int, _Request] = {}
        self._asked_timestep = -1
        self._result: EpisodeResult

    def run_episode(self, environment: Environment, spec: EpisodeSpec, task: str) -> EpisodeResult | None:
        """One episode from reset to end.

        Args:
            environment: To reset and step.
            spec: The episode, of that environment's task.
            task: Instruction given to the policy; empty: the environment's own.

        Returns:
            What happened, or None when the run was stopped in between.

        Raises:
            EpisodeError: The simulator failed.
            TransportError: The server failed, or did not answer in time.
        """
        with global_generators_of(spec):
            return self._run_episode(environment, spec, task)

    def _run_episode(self, environment: Environment, spec: EpisodeSpec, task: str) -> EpisodeResult | None:
        options, queue = self._options, self._queue
        queue.start_episode()
        # A server that hears the same number again would not forget what it remembers of the episode before.
        self._episode_number = spec.number ^ (_RUN_AGAIN if spec.number == self._episode_number else 0)
        if queue.next_timestep == self._asked_timestep:
            queue.skip()  # Nothing was executed since the last episode asked: a late answer must not look like ours.
        self._first_timestep = queue.next_timestep
        self._request = None
        self._asked.clear()
        started_s = time.perf_counter()
        environment.reset(spec, render=True)
        reset_s = time.perf_counter() - started_s
        self._result = EpisodeResult(
            spec.task_group, spec.task_id, spec.episode, spec.seed, spec.init_state_id, reset_s=reset_s
        )
        if options.on_starvation != "wait":
            environment.hold_action()  # Where nobody said how it holds, a run must end here and not at its first stall.
        self._observer.episode_started(environment, spec.episode)
        instruction = task or environment.task_description
        steps = _StepLog()
        started_s = time.perf_counter()
        self._clock.start_episode(spec)
        self._history.start_episode()
        self._robot_actions.start_episode()
        frame = True
        for step in range(environment.max_episode_steps):
            self._merge_due(step)
            if frame:
                self._history.look(environment, step)
            if self._history.is_complete(step) and self._wants_request():
                self._send(environment, step, instruction)
                self._merge_due(step)
            steps.queue_sizes.append(len(queue))
            if not len(queue):
                self._starve(step)
            if not self._running():
                return None
            action = self._next_action(environment)
            steps.states.append(environment.state())
            steps.actions.append(action)
            self._robot_actions.note(action)
            self._observer.acting(action, steps.queue_sizes[-1])
            frame = options.render == "always" or self._will_want_frame(step + 1)
            outcome = environment.step(self._to_device(action), render=frame)
            steps.rewards.append(outcome.reward)
            self._result.hear_success(outcome.success)
            self._observer.stepped(environment, outcome)
            if outcome.terminated or outcome.truncated:
                break
            self._clock.wait_for_next_step()
        self._result.stepping_s = time.perf_counter() - started_s
        steps.write_to(self._result)
        self._result.figures = episode_figures(self._result, environment.fps)
        self._note_open_request()
        return self._result

    # Asking for chunks.

    def _wants_request(self) -> bool:
        queue = self._queue
        if not queue.wants_observation(self._options.chunk_size_threshold):
            return False
        if queue.next_timestep == self._asked_timestep:
            return False  # A server answers a timestep once.
        if self._request is None or not self._options.one_request_in_flight:
            return True
        # The server may have filtered an observation that it did not have to answer: an empty queue asks again.
        return not self._request.must_go and not len(queue)

    def _send(self, environment: Environment, step: int, instruction: str) -> None:
        captured_ns = time.monotonic_ns()
        due_step = self._clock.due_step(step)
        observation = self._transport.loan_observation()
        try:
            environment.write_observation(observation)
            self._history.write_to(observation)
            self._robot_actions.write_to(observation)
            observation.timestep = self._queue.next_timestep
            observation.task = instruction
            observation.must_go = self._options.must_go == "always" or not len(self._queue)
            observation.episode = self._episode_number
            observation.inference_delay = self._clock.expected_delay() if due_step is None else due_step - step
            observation.timestamp_s = time.time()
            if (recorder := stages.recorder) is not None:
                recorder.mark_at(stages.BEGIN, observation.timestep, captured_ns)
                recorder.mark(stages.CAPTURE, observation.timestep)
            self._transport.send_observation(observation)
        except BaseException:
            if not self._transport.closed and observation.loan is not None:
                self._transport.return_loan(observation)
            raise
        self._asked_timestep = observation.timestep
        self._request = _Request(observation.timestep, step, due_step, captured_ns, observation.must_go)
        self._asked[observation.timestep] = self._request

    def _will_want_frame(self, step: int) -> bool:
        """Whether the frames before ``step``, the next one, may be sent: decides what the simulator renders.

        They are sent with the observation before ``step``, or in the history of one that follows.
        Never wrongly False for a chunk of the usual length; a frame that is missing after all costs one step of hold.
        """
        return any(self._may_ask(step, ahead) for ahead in range(self._history.n_obs_steps))

    def _may_ask(self, step: int, ahead: int) -> bool:
        """Whether the observation ``ahead`` steps after ``step``, the next one, may be sent."""
        threshold = self._options.chunk_size_threshold
        request = self._request
        queued = len(self._queue) - ahead
        free_to_ask = request is None or not self._options.one_request_in_flight
        if free_to_ask or (request is not None and not request.must_go and queued <= 0):
            return self._queue.wants_observation(threshold, queued)
        assert request is not None
        if request.due_step is not None and request.due_step > step + ahead:
            return False
        # The answer may be merged by then; what it leaves in the queue decides.
        after_merge = request.timestep + self._queue.chunk_size - self._queue.next_timestep - ahead
        return self._queue.wants_observation(threshold, max(after_merge, queued))

    # Getting chunks.

    def _merge_due(self, step: int) -> None:
        """Merge what takes effect before ``step``: what arrived (realtime), or what is due, waited for (simulated)."""
        request = self._request
        if request is None:
            return
        if request.due_step is None:
            while self._request is not None and (chunk := self._source.next_chunk(0.0)) is not None:
                self._merge(chunk, step)
        elif request.due_step <= step:
            self._wait_for_answer(request, step)

    def _starve(self, step: int) -> None:
        """No action is queued: count it, and wait where the simulator is to stand still."""
        self._result.starved_steps += step > 0
        request = self._request
        if self._options.on_starvation == "wait":
            while request is not None and not len(self._queue) and self._running():
                self._wait_for_answer(request, step)
                request = self._request

    def _wait_for_answer(self, request: _Request, step: int) -> None:
        while self._request is request and self._running():
            chunk = self._source.next_chunk(_SLICE_S)
            if chunk is not None:
                self._merge(chunk, step)

    def _merge(self, chunk: ActionChunk, step: int) -> None:
        if chunk.timestep < self._first_timestep:
            self._result.late_chunks += 1
            return
        request = self._request
        queued = len(self._queue)
        merged = self._queue.merge(chunk)
        if (recorder := stages.recorder) is not None:
            recorder.mark_at(stages.REPLY, chunk.timestep, chunk.arrived_ns)
            recorder.mark(stages.MERGE, chunk.timestep)
        asked = self._asked.get(chunk.timestep)
        if asked is None:
            raise ProtocolError(f"the server answered for timestep {chunk.timestep}, which it was not asked for")
        latency_s = max(0, chunk.arrived_ns - asked.captured_ns) * 1e-9
        self._clock.note_latency(latency_s)
        self._result.chunks.append(
            ChunkRecord(
                requested_step=asked.step,
                merged_step=step,
                length=len(chunk),
                stale=merged.stale,
                aggregated=merged.aggregated,
                queued=queued,
                latency_s=latency_s,
            )
        )
        self._observer.chunk_merged(self._result.chunks[-1])
        if request is not None and chunk.timestep >= request.timestep:
            self._request = None

    def _note_open_request(self) -> None:
        """The episode ended before the last answer took effect: where nobody knows its delay, it reached the end."""
        request = self._request
        if request is not None:
            due_step = self._result.length if request.due_step is None else request.due_step
            self._result.open_delay_steps = due_step - request.step

    def _next_action(self, environment: Environment) -> NDArray[np.float32]:
        if len(self._queue):
            return self._queue.pop()
        if self._options.on_starvation != "hold":
            self._queue.skip()
        return environment.hold_action()


class _StepLog:
    """Lists that grow with an episode and become arrays at its end."""

    def __init__(self) -> None:
        self.actions: list[NDArray[np.float32]] = []
        self.states: list[NDArray[np.float32]] = []
        self.rewards: list[float] = []
        self.queue_sizes: list[int] = []

    def write_to(self, result: EpisodeResult) -> None:
        result.actions = np.stack(self.actions)
        result.states = np.stack(self.states)
        result.rewards = np.array(self.rewards)
        result.queue_sizes = np.array(self.queue_sizes[: len(self.rewards)], np.int32)
