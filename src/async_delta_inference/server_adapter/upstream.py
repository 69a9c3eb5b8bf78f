"""LeRobot's PolicyServer as it is, on gRPC: for tests and benchmarks that compare with it."""

from __future__ import annotations

from concurrent import futures
from types import TracebackType
from typing import Any, Self

import grpc
from lerobot.transport import services_pb2_grpc

from async_delta_inference import stages
from async_delta_inference.errors import ConfigError
from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.transport.addresses import check_host_and_port

__all__ = ["UpstreamServer", "probe_stages"]

_STOP_GRACE_S = 1.0

_WORKERS = 8
"""Upstream has 4, which four waiting clients fill."""


class UpstreamServer:
    """What ``python -m lerobot.async_inference.policy_server`` serves, in this process. Use it as a context manager.

    Args:
        address: ``host:port``, port 0 for any free one; or ``unix:/path``.
        policy_server: A PolicyServer, or another ``AsyncInferenceServicer``; one is made where it is None.
        inference_latency_s: Seconds that an answer takes at least, of the one that is made (upstream's default: 1/30).
        obs_queue_timeout_s: Seconds that its GetActions waits for an observation.

    Raises:
        ConfigError: The address is none.
    """

    def __init__(
        self,
        address: str,
        policy_server: Any = None,
        *,
        inference_latency_s: float = 0.0,
        obs_queue_timeout_s: float = 2.0,
    ) -> None:
        check_host_and_port(address, smallest_port=0)
        if policy_server is None:
            module: Any = load_policy_server_module()
            policy_server = module.PolicyServer(
                module.PolicyServerConfig(inference_latency=inference_latency_s, obs_queue_timeout=obs_queue_timeout_s)
            )
        self.policy_server = policy_server
        self.uri = f"grpc://{address}"
        self._address = address
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Bind and serve; `uri` holds the port that was bound.

        Raises:
            ConfigError: The address cannot be bound.
        """
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=_WORKERS),
            # Without this a second server on the port is no error, and clients reach one of the two by chance.
            options=[("grpc.so_reuseport", 0)],
        )
        services_pb2_grpc.add_AsyncInferenceServicer_to_server(self.policy_server, server)
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as exc:
            raise ConfigError(f"cannot serve on {self._address}: is it taken, or not this machine's? ({exc})") from exc
        server.start()
        self._server = server
        if not self._address.startswith("unix:"):
            self.uri = f"grpc://{self._address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Stop serving; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(_STOP_GRACE_S).wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()


def probe_stages(policy_server: Any) -> None:
    """Have one instance of PolicyServer record its stages whenever this process has a recorder.

    Args:
        policy_server: Calls of its methods go through functions that mark their beginning or end; the class stays as
            LeRobot wrote it.
    """
    enqueue, predict, act = (
        getattr(policy_server, name) for name in ("_enqueue_observation", "_predict_action_chunk", "_get_action_chunk")
    )
    timestep = 0

    def enqueue_observation(obs: Any) -> Any:
        if (recorder := stages.recorder) is not None:
            # Before it is there: whoever waits for it may mark the next stage at once.
            recorder.mark(stages.TRANSFER, obs.get_timestep())
        return enqueue(obs)

    def predict_action_chunk(observation_t: Any) -> Any:
        nonlocal timestep
        if (recorder := stages.recorder) is None:
            return predict(observation_t)
        timestep = observation_t.get_timestep()
        recorder.mark(stages.WAIT, timestep)
        pipeline = policy_server.preprocessor

        def preprocess(batch: Any) -> Any:
            recorder.mark(stages.PREPARE, timestep)
            return pipeline(batch)

        policy_server.preprocessor = preprocess
        try:
            return predict(observation_t)
        finally:
            policy_server.preprocessor = pipeline
            recorder.mark(stages.POSTPROCESS, timestep)

    def get_action_chunk(observation: Any) -> Any:
        if (recorder := stages.recorder) is None:
            return act(observation)
        recorder.mark(stages.PREPROCESS, timestep)
        chunk = act(observation)
        recorder.mark(stages.FORWARD, timestep)
        return chunk

    policy_server._enqueue_observation = enqueue_observation
    policy_server._predict_action_chunk = predict_action_chunk
    policy_server._get_action_chunk = get_action_chunk
