"""What a run measures, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from harness.payloads import PAYLOADS, WIDE_CHUNK, Payload

__all__ = ["ClientStep", "Plan", "TransportStep", "full_plan", "payload_plan", "quick_plan"]

_ALL_KINDS = ("grpc", "grpc-wire", "grpc-unix", "grpc-ours", "grpc-native", "grpc-echo", "shm", "shm-host")


@dataclass(frozen=True)
class TransportStep:
    """One payload at the level of the transport.

    Args:
        payload: What is exchanged.
        kinds: Servers that take part.
        tight: Exchanges of each in the tight loop.
        paced: Exchanges of each at the environment's rate.
    """

    payload: Payload
    kinds: tuple[str, ...]
    tight: int
    paced: int


@dataclass(frozen=True)
class ClientStep:
    """One payload and policy through SimClient, over gRPC and shared memory.

    Args:
        payload: What is observed.
        policy: null, act or diffusion.
        pacing: tight or paced.
        chunks: Of each.
        rounds: In how many sessions.
    """

    payload: Payload
    policy: str
    pacing: str
    chunks: int
    rounds: int

    @property
    def grpc(self) -> str:
        """The server at the other end of gRPC: LeRobot's, or ours where LeRobot's cannot serve the policy."""
        return "grpc-ours" if self.policy == "diffusion" else "grpc"


@dataclass(frozen=True)
class Plan:
    """A run.

    Args:
        name: quick, full, or a payload's.
        transport_steps: First.
        client_steps: Then.
        soak_exchanges: At the end, over shared memory.
    """

    name: str
    transport_steps: tuple[TransportStep, ...]
    client_steps: tuple[ClientStep, ...]
    soak_exchanges: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Servers that are needed."""
        found = [kind for step in self.transport_steps for kind in step.kinds]
        found += [kind for step in self.client_steps for kind in (step.grpc, "shm-host")]
        return tuple(dict.fromkeys(found))


def quick_plan() -> Plan:
    """The rows that the limits are about, in a minute."""
    libero = PAYLOADS["libero"]
    return Plan(
        "quick",
        (
            TransportStep(PAYLOADS["state"], ("shm",), 1000, 0),
            TransportStep(libero, ("grpc", "grpc-native", "grpc-echo", "shm"), 500, 20),
            TransportStep(PAYLOADS["3x480x640"], ("shm",), 200, 0),
            TransportStep(PAYLOADS["4x1080x1920"], ("shm",), 100, 0),
        ),
        (
            ClientStep(libero, "null", "tight", 60, 2),
            ClientStep(libero, "act", "tight", 60, 3),
            ClientStep(libero, "diffusion", "tight", 15, 3),
        ),
        100_000,
    )


def full_plan() -> Plan:
    """Everything, in a quarter of an hour."""
    libero = PAYLOADS["libero"]
    steps = [
        TransportStep(payload, _ALL_KINDS, *((1000, 1000) if payload.small else (200, 200)))
        for payload in PAYLOADS.values()
    ]
    steps.append(TransportStep(libero.with_chunk(WIDE_CHUNK), ("grpc", "shm"), 1000, 0))
    steps.append(TransportStep(libero, ("grpc-default",), 1000, 0))
    return Plan(
        "full",
        tuple(steps),
        (
            ClientStep(libero, "null", "tight", 1000, 5),
            ClientStep(libero, "null", "paced", 200, 2),
            ClientStep(libero, "act", "tight", 1000, 5),
            ClientStep(libero, "act", "paced", 200, 2),
            ClientStep(libero, "diffusion", "tight", 200, 5),
        ),
        100_000,
    )


def payload_plan(payload: Payload, quick: bool) -> Plan:
    """One payload of the user's own."""
    exchanges = (1000 if payload.small else 200) // (5 if quick else 1)
    return Plan(
        payload.name,
        (TransportStep(payload, _ALL_KINDS, exchanges, exchanges // 5),),
        (ClientStep(payload, "null", "tight", exchanges // 5, 2),),
        0,
    )
