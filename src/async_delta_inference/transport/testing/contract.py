"""`TransportContract`: what every transport must do with both its halves, whatever carries it."""

from __future__ import annotations

from async_delta_inference.transport.testing.exchange import ExchangeCases
from async_delta_inference.transport.testing.history import HistoryCases
from async_delta_inference.transport.testing.lifetime import LifetimeCases
from async_delta_inference.transport.testing.loans import LoanCases
from async_delta_inference.transport.testing.policies import PolicyCases
from async_delta_inference.transport.testing.prefixes import PrefixCases
from async_delta_inference.transport.testing.sessions import SessionCases

__all__ = ["TransportContract"]


class TransportContract(ExchangeCases, HistoryCases, PrefixCases, LoanCases, LifetimeCases, PolicyCases, SessionCases):
    """Every transport's tests. A backend has one subclass, and no test of it may be muted.

    ::

        class TestMyContract(TransportContract):
            scheme = "mine"
            absent_uri = "mine://nobody-is-here"

    The server half runs in a process of its own, which inherits the environment, so that it can be killed; that of a
    backend which stays within a process (``reach == "process"``) in a thread.
    """
