"""Loaded once by the process that peers are forked from."""

import lerobot.async_inference.helpers
from lerobot.transport import services_pb2_grpc  # noqa: F401

import async_delta_inference.transport.testing  # noqa: F401

# PolicyServer's module makes a logs/ folder when it is imported; the peers import it themselves, from memory.
_get_logger = lerobot.async_inference.helpers.get_logger
lerobot.async_inference.helpers.get_logger = lambda name, log_to_file=True: _get_logger(name, log_to_file=False)
import lerobot.async_inference.policy_server  # noqa: E402
