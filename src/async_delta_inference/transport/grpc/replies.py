"""Replies of our own service."""

from __future__ import annotations

from typing import Any

import numpy as np

from async_delta_inference.errors import PolicyError, ProtocolError
from async_delta_inference.transport.grpc import native
from async_delta_inference.transport.mailbox import Filtered, Reply
from async_delta_inference.transport.messages import ActionChunk, SessionSpec

__all__ = ["encode_reply", "read_reply"]


def encode_reply(number: int, reply: Reply) -> bytes:
    """A reply as the server sends it."""
    message = native.new_server_message()
    fields: Any
    if isinstance(reply, ActionChunk):
        fields = message.chunk
        fields.timestamp_s, fields.rows = reply.timestamp_s, len(reply)
        fields.actions = bytes(reply.memory) if reply.memory is not None else reply.actions.tobytes()
    elif isinstance(reply, PolicyError):
        fields = message.error
        fields.reason = native.sayable(str(reply))
    else:
        fields = message.filtered
    fields.number, fields.timestep = number, reply.timestep
    data: bytes = message.SerializeToString()
    return data


def read_reply(message: Any, spec: SessionSpec, sender: str) -> tuple[int, Reply]:
    """A reply and its number.

    Args:
        message: As `native.decode_server` gives it.
        spec: What was agreed.
        sender: Names the server in messages to humans.

    Raises:
        ProtocolError: It is none, or none of this session.
    """
    if message.HasField("chunk"):
        return message.chunk.number, _read_chunk(message.chunk, spec)
    if message.HasField("error"):
        fields = message.error
        return fields.number, PolicyError(f"{sender} failed: {fields.reason[: native.MAX_REASON]}", fields.timestep)
    if message.HasField("filtered"):
        return message.filtered.number, Filtered(message.filtered.timestep)
    raise ProtocolError(f"{sender} sent what is no reply")


def _read_chunk(fields: Any, spec: SessionSpec) -> ActionChunk:
    rows, data = fields.rows, fields.actions
    if not 1 <= rows <= spec.actions_per_chunk or len(data) != 4 * rows * spec.action_dim:
        raise ProtocolError(
            f"the server sent {len(data)} bytes of {rows} actions; agreed were 1 to {spec.actions_per_chunk} of "
            f"{spec.action_dim} float32"
        )
    memory = bytearray(data)
    actions = np.frombuffer(memory, np.float32).reshape(rows, spec.action_dim)
    return ActionChunk(actions, fields.timestep, fields.timestamp_s, memory=memory)
