"""The calls that lerobot's RobotClient makes, one at a time, for tests that must decide when."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import grpc
import torch
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.transport import services_pb2
from lerobot.transport.services_pb2_grpc import AsyncInferenceStub
from lerobot.transport.utils import send_bytes_in_chunks

from async_delta_inference.transport.grpc.wire import raw_observation
from async_delta_inference.transport.testing import CONTRACT_POLICY, WAIT_S, contract_observation, scripted_actions
from async_delta_inference.transport.testing.commands import Commands
from async_delta_inference.transport.testing.messages import contract_pixel

FEATURES = CONTRACT_POLICY.features


class RobotCalls:
    """The calls that RobotClient makes, over its channel: without our client's metadata, one at a time."""

    def __init__(self, uri: str, number: int = 0) -> None:
        self._number = number
        # RobotClients are in processes of their own; here, each needs a connection of its own.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(uri.removeprefix("grpc://"), options)
        self.stub: Any = AsyncInferenceStub(self.channel)

    def ready(self) -> None:
        self.stub.Ready(services_pb2.Empty(), timeout=WAIT_S)

    def set_up(self, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "policy_type": "act",
            "pretrained_name_or_path": "scripted",
            "lerobot_features": FEATURES.to_lerobot(),
            "actions_per_chunk": 5,
        }
        setup = services_pb2.PolicySetup(data=pickle.dumps(RemotePolicyConfig(**fields | changes)))
        self.stub.SendPolicyInstructions(setup, timeout=WAIT_S)

    def begin(self) -> None:
        self.ready()
        self.set_up()

    def send(self, timestep: int, must_go: bool = True) -> None:
        observation = contract_observation(timestep, client=self._number)
        raw = raw_observation(observation, FEATURES)
        self.send_bytes(pickle.dumps(TimedObservation(observation.timestamp_s, timestep, raw, must_go)))

    def send_bytes(self, data: bytes) -> None:
        self.stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation), timeout=WAIT_S)

    def ask(self) -> list[TimedAction]:
        data = self.stub.GetActions(services_pb2.Empty(), timeout=WAIT_S).data
        return pickle.loads(data) if data else []

    def expect(self, timestep: int) -> None:
        actions = self.ask()
        assert [action.timestep for action in actions] == list(range(timestep, timestep + 5))
        assert actions[0].timestamp == 1000.0 + timestep
        expected = scripted_actions(timestep, contract_pixel(timestep, self._number), self._number)
        assert torch.equal(torch.stack([action.action for action in actions]), torch.from_numpy(expected))


def make_robot(uri: str) -> Commands:
    """A client in a process of its own, which loads nothing but the backend; it can say what that loaded."""
    calls = RobotCalls(uri)
    return {"begin": calls.begin, "modules": lambda: sorted(sys.modules)}
