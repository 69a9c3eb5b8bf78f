"""`ObservationHistory`: what the environment showed at the steps before, for a policy that looks at several at once."""

from __future__ import annotations

from collections import deque

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.transport import Observation, ObservationFeatures, PastObservation

__all__ = ["ObservationHistory"]


class ObservationHistory:
    """Keeps the last observations of an episode, as many as a policy looks at.

    A policy that looks at one costs nothing: nothing is kept.

    Args:
        n_obs_steps: How many successive observations the policy looks at.
    """

    def __init__(self, n_obs_steps: int) -> None:
        self.n_obs_steps = n_obs_steps
        self._kept: deque[tuple[int, PastObservation]] = deque(maxlen=n_obs_steps)
        self._step = -1
        self._features: ObservationFeatures | None = None
        self._spare: list[PastObservation] = []

    def start_episode(self) -> None:
        """Forget the last episode."""
        self._step = -1
        while self._kept:
            self._spare.append(self._kept.popleft()[1])

    def look(self, environment: Environment, step: int) -> None:
        """Keep what is observed before ``step``, whose frames were rendered."""
        self._step = step
        if self.n_obs_steps == 1:
            return
        if environment.features != self._features:
            self._features, self._spare = environment.features, []
        if len(self._kept) == self.n_obs_steps:
            self._spare.append(self._kept.popleft()[1])
        seen = self._spare.pop() if self._spare else PastObservation.empty(environment.features)
        environment.write_observation(Observation(seen.images, seen.state))
        self._kept.append((step, seen))

    def is_complete(self, step: int) -> bool:
        """Whether everything is there that an observation before ``step`` needs."""
        if self.n_obs_steps == 1 or self._step != step:
            return self._step == step
        steps = [kept for kept, _ in self._kept]
        return steps[-min(self.n_obs_steps, step + 1) :] == list(range(max(0, step + 1 - self.n_obs_steps), step + 1))

    def write_to(self, observation: Observation) -> None:
        """Fill the history of an observation of the last step that was looked at; the first stands in for those before.

        Args:
            observation: Its history has one element less than the policy looks at.
        """
        if self.n_obs_steps == 1:
            return
        seen = [past for step, past in self._kept if step > self._step - self.n_obs_steps]
        padded = [seen[0]] * (self.n_obs_steps - len(seen)) + seen
        for past, target in zip(padded, observation.history, strict=False):  # The last one is the observation itself.
            target.state[...] = past.state
            for name, image in past.images.items():
                target.images[name][...] = image
