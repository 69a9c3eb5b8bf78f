"""`GrpcTransport`: ``grpc://`` in whichever dialect the server speaks."""

from __future__ import annotations

import logging

from async_delta_inference.transport.addresses import check_host_and_port
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.grpc.client.lerobot_link import LeRobotLink
from async_delta_inference.transport.grpc.client.link import Line, Link, Owner, open_line
from async_delta_inference.transport.grpc.client.native_link import NativeLink, NotSpoken
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec

__all__ = ["GrpcTransport"]

logger = logging.getLogger(__name__)


class GrpcTransport(Transport):
    """``grpc://host:port`` (or ``grpc://unix:/path``) to `GrpcListener`, or to LeRobot's own PolicyServer as it is.

    It asks for our own protocol first and speaks LeRobot's where the server has only that, unless
    ``options.link.grpc.dialect`` names one.

    Raises:
        ConfigError: The address is neither.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        check_host_and_port(address, smallest_port=1)
        super().__init__(address, options)
        self._owner = Owner(self.options, self._closed, self._note_answer, self._restart_deadline)
        self._line: Line | None = None
        self._link: Link | None = None

    @property
    def dialect(self) -> str:
        """Native or lerobot, once connected."""
        return "" if self._link is None else self._link.dialect

    @property
    def spoken(self) -> str:
        """See `Transport`: the dialect, and frames that are not what was seen."""
        encoding = self.options.link.grpc.image_encoding
        return f"grpc, {self.dialect}" + (f", images as {encoding}" if encoding != "raw" else "")

    def _connect(self, spec: SessionSpec) -> str:
        wanted = self.options.link.grpc.dialect
        self._line = open_line(self.address, self.options)
        self._link = (
            LeRobotLink(self._line, self._owner) if wanted == "lerobot" else NativeLink(self._line, self._owner)
        )
        try:
            description = self._link.connect(spec)
        except NotSpoken:
            if wanted == "native" or self.options.link.grpc.image_encoding != "raw":
                raise
            self._link = LeRobotLink(self._line, self._owner)
            description = self._link.connect(spec)
        self._n_obs_steps, self._prefix = self._link.n_obs_steps, self._link.prefix
        self._computation = self._link.computation
        logger.info("speaking %s with %s", self.spoken, self.address)
        return description

    def _send(self, observation: Observation) -> None:
        assert self._link is not None
        self._link.send(observation)

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        assert self._link is not None
        return self._link.receive(timeout_s)

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._line is not None:
            self._line.channel.close()

    def _expects_answers(self) -> bool:
        return self._link is None or self._link.expects_answers()
