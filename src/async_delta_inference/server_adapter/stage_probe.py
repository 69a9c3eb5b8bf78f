"""Marks the stages inside a PolicyServer from the outside: the class stays as LeRobot wrote it."""

from __future__ import annotations

from typing import Any

from async_delta_inference import stages

__all__ = ["probe_stages"]


def probe_stages(policy_server: Any, *, queued: bool = True) -> None:
    """Have one instance of PolicyServer record its stages whenever this process has a recorder.

    Args:
        policy_server: The instance; calls of its methods go through functions that mark their beginning or end.
        queued: Whether its queue is where observations wait, as it is over gRPC.
    """
    enqueue, predict, act = (
        getattr(policy_server, name) for name in ("_enqueue_observation", "_predict_action_chunk", "_get_action_chunk")
    )
    timestep = 0

    def enqueue_observation(obs: Any) -> Any:
        if (recorder := stages.recorder) is not None and queued:
            # Before it is there: whoever waits for it may mark the next stage at once.
            recorder.mark(stages.TRANSFER, obs.get_timestep())
        return enqueue(obs)

    def predict_action_chunk(observation_t: Any) -> Any:
        nonlocal timestep
        if (recorder := stages.recorder) is None:
            return predict(observation_t)
        timestep = observation_t.get_timestep()
        if queued:
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
