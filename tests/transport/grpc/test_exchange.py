"""What an empty reply means: the bookkeeping, without a network."""

from __future__ import annotations

from async_delta_inference.transport.grpc.exchange import Exchange, Outgoing


def sent(exchange: Exchange, timestep: int, *, must_go: bool = True) -> Outgoing:
    exchange.post(Outgoing(timestep, must_go, b""))
    outgoing = exchange.begin_send()
    exchange.acknowledge(outgoing)
    return outgoing


def test_waiting_observation_is_replaced_by_a_newer_one() -> None:
    exchange = Exchange()
    exchange.post(Outgoing(1, True, b"old"))
    exchange.post(Outgoing(2, True, b"new"))
    assert exchange.begin_send().data == b"new"
    assert not exchange.has_waiting


def test_nothing_is_owed_before_the_server_has_it() -> None:
    exchange = Exchange()
    exchange.post(Outgoing(1, True, b""))
    outgoing = exchange.begin_send()
    assert exchange.newest_acknowledged() is None
    exchange.acknowledge(outgoing)
    assert exchange.newest_acknowledged() is outgoing


def test_empty_reply_to_what_had_to_be_answered_is_a_failure() -> None:
    exchange = Exchange()
    due = sent(exchange, 1)
    assert exchange.answered_empty(due)
    assert exchange.newest_acknowledged() is None


def test_empty_reply_to_what_may_be_filtered_is_none() -> None:
    exchange = Exchange()
    due = sent(exchange, 1, must_go=False)
    assert not exchange.answered_empty(due)
    assert exchange.newest_acknowledged() is None


def test_failure_leaves_the_next_observation_owed() -> None:
    exchange = Exchange()
    first = sent(exchange, 1)
    second = sent(exchange, 2)
    assert exchange.answered_empty(first)
    assert exchange.newest_acknowledged() is second


def test_chunk_that_overtakes_the_acknowledgement_settles_it() -> None:
    exchange = Exchange()
    exchange.post(Outgoing(1, True, b""))
    outgoing = exchange.begin_send()
    exchange.answered(1)
    exchange.acknowledge(outgoing)
    assert exchange.newest_acknowledged() is None


def test_chunk_settles_the_older_ones_it_replaced() -> None:
    exchange = Exchange()
    sent(exchange, 1)
    sent(exchange, 2)
    third = sent(exchange, 3)
    exchange.answered(2)
    assert exchange.newest_acknowledged() is third


def test_empty_reply_after_the_chunk_came_is_none() -> None:
    exchange = Exchange()
    due = sent(exchange, 1)
    exchange.answered(1)
    assert not exchange.answered_empty(due)


def test_restart_sends_the_newest_unanswered_again() -> None:
    exchange = Exchange()
    sent(exchange, 1)
    second = sent(exchange, 2)
    exchange.restart()
    assert exchange.newest_acknowledged() is None
    assert exchange.begin_send() is second
    assert not second.acknowledged


def test_restart_prefers_what_is_newer_than_the_unanswered() -> None:
    exchange = Exchange()
    sent(exchange, 1)
    exchange.post(Outgoing(2, True, b""))
    exchange.restart()
    assert exchange.begin_send().timestep == 2
