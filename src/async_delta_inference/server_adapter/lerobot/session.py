"""One client's session with a policy that others share: its history, its noise, its names, its filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.server_adapter.device import DevicePreparation, FrameCopies, PinnedMemory
from async_delta_inference.server_adapter.lerobot.asking import Way
from async_delta_inference.server_adapter.lerobot.chunking import RealTimeChunking
from async_delta_inference.server_adapter.lerobot.continuing import Continuing
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.server_adapter.lerobot.noise import (
    NoiseSource,
    RandomState,
    RequestNoise,
    StreamNoise,
    kept_random_state,
)
from async_delta_inference.server_adapter.lerobot.surroundings import Surroundings, cannot_take
from async_delta_inference.server_adapter.similarity import SimilarityFilter
from async_delta_inference.transport.action_prefix import ActionPrefix
from async_delta_inference.transport.messages import Observation, SessionSpec
from async_delta_inference.transport.policy import EpisodeStart

__all__ = ["LeRobotSession"]


class LeRobotSession:
    """A `PolicySession` of `LeRobotPolicy`.

    Args:
        loaded: The policy.
        way: How it is asked.
        spec: What the client asked for.
        around: What stands around the policy for it.
        on_close: Told when the session is over.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        way: Way,
        spec: SessionSpec,
        around: Surroundings,
        on_close: Callable[[LeRobotSession], None],
    ) -> None:
        self.spec = spec
        self.around = around
        self.n_obs_steps = loaded.config.n_obs_steps
        self._loaded = loaded
        self._way = way
        self._on_close = on_close
        self._noise = _noise_of(loaded, spec) if way.draws else NoiseSource()
        self._remembered: dict[str, Any] = {}
        self._first_timestep: int | None = None
        self._filter = SimilarityFilter()
        self._chunking = RealTimeChunking(loaded, spec.options.rtc) if spec.options.rtc.enabled else None
        self._continuing = Continuing(loaded, spec) if loaded.prefix else None
        self._pinned: PinnedMemory | None = None
        self._copies: FrameCopies | None = None

    def share(self, memory: memoryview) -> None:
        """Its observations lie in this memory: it is registered with the driver of the policy's GPU, if it has one."""
        if self._loaded.pins_memory and isinstance(self.around.prepare, DevicePreparation):
            self._pinned = PinnedMemory.pin(memory, self._loaded.device)
            self._copies = FrameCopies(self._loaded.device) if self._pinned is not None else None

    def reset(self, episode: EpisodeStart) -> None:
        """Forget the last episode, of this session alone where the policy remembers anything."""
        if self._way.remembers:
            self._remembered = self._loaded.memory.fresh()
        else:
            self._loaded.policy.reset()
        for processor in self.around.processors:
            processor.reset()
        self._first_timestep = None
        self._filter.forget()
        if self._chunking is not None:
            self._chunking.reset()

    def close(self) -> None:
        """The session is over; the policy stays loaded for the next."""
        self._on_close(self)
        try:
            if self._copies is not None:
                self._copies.finish()
        finally:
            if self._pinned is not None:
                self._pinned.unpin()

    def wants(self, observation: Observation) -> bool:
        """Whether an observation is to be answered: one that need not be is left to PolicyServer's filter."""
        return self._filter.passes(observation.timestep, observation.must_go, observation.state)

    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32]:
        """One observation's chunk.

        Args:
            observation: Its arrays are not used after ``release`` was called.
            release: Called as soon as the images have become the policy's tensors.

        Returns:
            float32 (n, A).

        Raises:
            Exception: Whatever the policy raises.
        """
        timestep, recorder = observation.timestep, stages.recorder
        # Real-time chunking differentiates, which inference mode forbids.
        with torch.no_grad() if self.continues_chunks else torch.inference_mode(), self._loaded.autocast():
            try:
                batches = self.inputs(observation, release)
                if recorder is not None:
                    recorder.mark(stages.PREPROCESS, timestep)
                chunk = self._ask(observation, batches)
                self.settle()
                if recorder is not None:
                    self._loaded.wait_for_device()  # Else it would be the postprocessor that waits for it.
                    recorder.mark(stages.FORWARD, timestep)
                return self.finish(observation, chunk)
            finally:
                if self._copies is not None:
                    self._copies.finish()

    def inputs(self, observation: Observation, release: Callable[[], None]) -> list[dict[str, Any]]:
        """What the policy is given: of each observed step what the preprocessor makes of it, the oldest first."""
        timestep, recorder = observation.timestep, stages.recorder
        # The filter's own: a policy may write into the tensors that it is given.
        state = observation.state.copy()
        self._filter.begin(timestep)
        if self._first_timestep is None:
            self._first_timestep = timestep
        seen = observation.steps() if self.n_obs_steps > 1 else (observation,)
        prepared = [self.around.prepare(step, observation.task) for step in seen[-self.n_obs_steps :]]
        told: dict[str, Any] = {}
        if self._continuing is not None:
            self._continuing.add_to(told, observation)
        if self._copies is None:
            release()
        else:
            self._copies.began(release)
        if recorder is not None:
            recorder.mark(stages.PREPARE, timestep)
        batches = [self.around.preprocess(batch, finished) for batch, finished in prepared]
        batches[-1].update(told)
        self._filter.remember(state)
        return batches

    def finish(self, observation: Observation, chunk: torch.Tensor) -> NDArray[np.float32]:
        """The policy's chunk (1, n, A) as actions (n, A)."""
        return self.finished(observation, self.around.postprocess(chunk))

    def finished(self, observation: Observation, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """The answer (n, A) to an observation, of a postprocessed chunk (n, A)."""
        if self._continuing is not None:
            actions = self._continuing.continued(actions, self.spec.actions_per_chunk)
        if (recorder := stages.recorder) is not None:
            recorder.mark(stages.POSTPROCESS, observation.timestep)
        return actions

    def settle(self) -> bool:
        """Give back the slots whose frames have been copied, and say whether all have; waits for nothing."""
        return self._copies is None or self._copies.settle()

    def before_noise(self, observation: Observation) -> None:
        """Put the global generators where this observation's inference begins."""
        assert self._first_timestep is not None
        self._noise.before(observation.episode, observation.timestep - self._first_timestep)

    def after_noise(self, state: RandomState) -> None:
        """That inference left the generators like this."""
        self._noise.after(state)

    @property
    def noise_goes_on(self) -> bool:
        """Whether the next inference begins with the generators as this one leaves them."""
        return self._noise.goes_on

    @property
    def continues_chunks(self) -> bool:
        """Whether each chunk is made from the last one, as real-time chunking does."""
        return self._chunking is not None

    def _ask(self, observation: Observation, batches: list[dict[str, Any]]) -> torch.Tensor:
        way, rows = self._way, self.spec.actions_per_chunk
        if not (way.remembers or way.draws):
            return way(batches, rows)
        memory = self._loaded.memory
        if way.remembers:
            memory.put(self._remembered)
        self.before_noise(observation)
        try:
            if self._chunking is not None:
                return self._chunking(observation, batches, rows)
            return way(batches, rows)
        finally:
            self._noise.after()
            if way.remembers:
                self._remembered = memory.take()

    def try_out(self) -> None:
        """Ask once, for nothing: what the policy cannot take is better known now than in an episode.

        Raises:
            SetupRefusedError: It cannot take what the session observes.
        """
        observation = Observation.empty(self.spec.features, self.n_obs_steps)
        observation.inference_delay = 0
        observation.prefix = ActionPrefix.empty(self.spec.action_dim) if self._loaded.prefix else None
        for seen in observation.steps():
            seen.state[:] = 0
            for image in seen.images.values():
                image[:] = 0
        try:
            with kept_random_state():
                self.reset(EpisodeStart(0, ""))
                self.answer(observation, lambda: None)
        except Exception as exc:
            raise cannot_take(self._loaded, self.spec, exc) from exc


def _noise_of(loaded: LoadedPolicy, spec: SessionSpec) -> NoiseSource:
    seed = spec.options.seed
    return StreamNoise(loaded.stream(seed)) if spec.options.noise == "stream" else RequestNoise(seed)
