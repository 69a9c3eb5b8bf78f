"""`PolicyFailures`: what a policy raised, in one line for its client, and with its traceback for whoever wrote it."""

from __future__ import annotations

import logging
import traceback

from async_delta_inference.errors import PolicyError

__all__ = ["PolicyFailures"]

logger = logging.getLogger(__name__)


class PolicyFailures:
    """Turns any exception into a `PolicyError`, and logs its traceback once while it stays the same."""

    def __init__(self) -> None:
        self._last = ""

    def as_error(self, what: str, exc: BaseException) -> PolicyError:
        """The error to answer with.

        Args:
            what: Failed, for the log.
            exc: A `PolicyError` is what the policy wants its client to read, and is not logged.
        """
        if isinstance(exc, PolicyError):
            return exc
        # As text: a record that keeps the exception would keep the memory of the session that its frames hold.
        # A message that no encoding holds would fail wherever the log is written to.
        text = "".join(traceback.format_exception(exc)).rstrip().encode(errors="backslashreplace").decode()
        logger.log(logging.DEBUG if text == self._last else logging.ERROR, "%s failed\n%s", what, text)
        self._last = text
        return PolicyError(f"{type(exc).__name__}: {exc}")
