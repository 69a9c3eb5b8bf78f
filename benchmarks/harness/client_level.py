"""`SimClient` itself, in a stub environment with frames of real size: from an observation's capture to its chunk in the
client's queue. One flag apart: ``server_address``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from async_delta_inference import stages
from async_delta_inference.client import Environment, EpisodeSpec, SimClient, SimClientConfig, StepResult
from async_delta_inference.errors import ProtocolError
from async_delta_inference.stage_trace import StageSpan, spans_of
from async_delta_inference.transport import Observation, open_transport
from harness.payloads import Payload
from harness.resources import cpu_ns, peak_rss_mb, reset_peak_rss
from harness.servers import ServerProcess
from harness.statistics import Series

__all__ = ["ClientVariant", "StubEnvironment", "run_client_level"]

_WARMUP = 3
_PACED_FPS = 1000.0
"""Control steps per second when paced: a chunk of 50 lasts as long as one of LIBERO's steps."""


class StubEnvironment(Environment):
    """Costs nothing to step; its frames are copied to where the client wants them, as a camera's are.

    Args:
        payload: Shapes of what it observes.
        steps: Per episode.
    """

    renders_on_demand = True

    def __init__(self, payload: Payload, steps: int) -> None:
        self.task_group, self.task_id = "stub", 0
        self.features = payload.features
        self.action_dim = payload.chunk[1]
        self.max_episode_steps = steps
        self.fps = 20.0
        self._seen = payload.observation()
        self.task_description = self._seen.task
        self._nothing = StepResult(0.0, False, False, False)
        self.observed = 0

    def reset(self, spec: EpisodeSpec, *, render: bool = True) -> None:
        """Nothing to reset."""

    def step(self, action: NDArray[np.float32], *, render: bool = True) -> StepResult:
        """Nothing happens."""
        return self._nothing

    def state(self) -> NDArray[np.float32]:
        """float32 (S,)."""
        return self._seen.state

    def write_observation(self, observation: Observation) -> None:
        """Copy the frames, each time marked differently."""
        self._seen.state[0] = self.observed
        for image in self._seen.images.values():
            image[-1, -1, -1] = self.observed % 256
        self.observed += 1
        observation.state[...] = self._seen.state
        for name, image in self._seen.images.items():
            observation.images[name][...] = image

    def hold_action(self) -> NDArray[np.float32]:
        """float32 (A,) zeros."""
        return np.zeros(self.action_dim, np.float32)

    def video_frame(self) -> NDArray[np.uint8]:
        """One grey pixel."""
        return np.full((1, 1, 3), 128, np.uint8)

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class ClientVariant:
    """One combination at the client's level.

    Args:
        server: To connect to.
        payload: What the environment observes.
        checkpoint: Folder or name that the server is told.
        series: Where its rounds go.
    """

    server: ServerProcess
    payload: Payload
    checkpoint: str
    series: Series

    def __post_init__(self) -> None:
        self.spans: list[StageSpan] = []
        self.actions: list[NDArray[np.float32]] = []

    def run_round(self, chunks: int) -> None:
        """One session: ``chunks`` chunks after the warm-up, each asked for when the queue is empty.

        Raises:
            ProtocolError: Chunks went missing.
        """
        environment = StubEnvironment(self.payload, (chunks + _WARMUP) * self.payload.chunk[0])
        # Of its own, so that nobody looks for the null policy's checkpoint, a name that nobody resolves.
        transport = open_transport(self.server.uri)
        client = SimClient(self._config(), environments=[environment], transport=transport)
        pids = (os.getpid(), self.server.pid)
        client.start()
        try:
            self.server.record_stages(True)
            stages.start()
            reset_peak_rss(*pids)
            before_ns = sum(map(cpu_ns, pids))
            (episode,) = client.control_loop().episodes
            spent_ns = sum(map(cpu_ns, pids)) - before_ns
            marks = stages.take() + self.server.stage_marks()
        finally:
            client.stop()
            stages.stop()
            self.server.record_stages(False)
        for who, pid in zip(("client", "server"), pids, strict=True):
            peak = max(peak_rss_mb(pid), self.series.peak_rss_mb.get(who, 0.0))
            self.series.peak_rss_mb[who] = peak
        if len(episode.chunks) != chunks + _WARMUP:
            raise ProtocolError(f"{chunks + _WARMUP} observations were answered with {len(episode.chunks)} chunks")
        self.actions.append(episode.actions)
        self._add(marks, chunks, round(spent_ns * chunks / (chunks + _WARMUP)))

    def _config(self) -> SimClientConfig:
        return SimClientConfig(
            env=None,
            policy_type="act" if self.series.policy == "null" else self.series.policy,
            pretrained_name_or_path=self.checkpoint,
            actions_per_chunk=self.payload.chunk[0],
            server_address=self.server.uri,
            n_episodes=1,
            chunk_size_threshold=0.0,
            fps=_PACED_FPS if self.series.pacing == "paced" else 1e6,
            progress=False,
            output_dir=Path(tempfile.gettempdir()) / f"adi-bench-eval-{os.getpid()}",
            overwrite=True,
        )

    def _add(self, marks: list[stages.Mark], chunks: int, spent_ns: int) -> None:
        begin = {timestep: at_ns for stage, timestep, at_ns in marks if stage == stages.BEGIN}
        merge = {timestep: at_ns for stage, timestep, at_ns in marks if stage == stages.MERGE}
        timesteps = sorted(merge)[-chunks:]
        spans = [span for span in spans_of(marks) if span.timestep >= timesteps[0]]
        forward = {span.timestep: span.duration_ns for span in spans if span.stage == stages.FORWARD}
        self.spans += spans
        self.series.add(np.array([merge[t] - begin[t] for t in timesteps]), spent_ns)
        self.series.forward_ns.append(np.array([forward[t] for t in timesteps]))


def run_client_level(variants: Sequence[ClientVariant], chunks: int, rounds: int) -> None:
    """Rounds of all variants in turn; then compare what they were answered.

    Args:
        variants: Of one payload and one policy.
        chunks: Of each, in all.
        rounds: Sessions of each.

    Raises:
        ProtocolError: Two transports brought different actions for the same observations.
    """
    for number in range(rounds):
        turn = number % len(variants)
        for variant in [*variants[turn:], *variants[:turn]]:
            variant.run_round(-(-chunks // rounds))
    first, *others = variants
    for other in others:
        for ours, theirs in zip(first.actions, other.actions, strict=True):
            if not np.array_equal(ours, theirs):
                raise ProtocolError(
                    f"{first.series.transport} and {other.series.transport} bring different actions for equal images"
                )
