"""Between a session's slots and a GPU: pinned memory, frames as bytes, chunks back."""

from __future__ import annotations

from async_delta_inference.server_adapter.device.chunk_fetch import ChunkFetch, Fetched
from async_delta_inference.server_adapter.device.frame_copies import FrameCopies
from async_delta_inference.server_adapter.device.frames import DevicePreparation
from async_delta_inference.server_adapter.device.pinning import PinnedMemory
from async_delta_inference.server_adapter.device.side_stream import SideStream

__all__ = ["ChunkFetch", "DevicePreparation", "Fetched", "FrameCopies", "PinnedMemory", "SideStream"]
