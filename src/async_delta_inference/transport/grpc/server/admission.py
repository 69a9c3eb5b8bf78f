"""`TokenCheck`: nobody without the token gets any further than this, in any dialect."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from async_delta_inference.transport.grpc import extras

__all__ = ["TokenCheck"]


class TokenCheck(grpc.ServerInterceptor):
    """Refuses calls without the token, before anything of them is read.

    Args:
        token: That clients must send.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        # Whatever the call is to the client, to the wire it is a stream: nothing of it is waited for.
        self._refusal: Any = grpc.stream_unary_rpc_method_handler(_refuse)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See gRPC. The comparison takes as long whatever was sent."""
        details: Any = handler_call_details
        given = next((value for name, value in details.invocation_metadata or () if name == extras.TOKEN), "")
        data = given.encode("utf-8", "replace") if isinstance(given, str) else bytes(given)
        return continuation(handler_call_details) if hmac.compare_digest(data, self._token) else self._refusal


def _refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "this server asks for a token, and this client has not sent the right one: give both sides the same "
        "--grpc.token_file or ASYNC_DELTA_TOKEN (LeRobot's own clients have none)",
    )
    raise AssertionError("abort raises")
