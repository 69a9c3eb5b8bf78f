"""What an empty reply means: the bookkeeping, without a network."""

from __future__ import annotations

from async_delta_inference.transport.grpc.client.pending import Outgoing, PendingObservations


def sent(pending: PendingObservations, timestep: int, *, must_go: bool = True) -> Outgoing:
    pending.post(Outgoing(timestep, must_go, b""))
    outgoing = pending.begin_send()
    pending.acknowledge(outgoing)
    return outgoing


def test_waiting_observation_is_replaced_by_a_newer_one() -> None:
    pending = PendingObservations()
    pending.post(Outgoing(1, True, b"old"))
    pending.post(Outgoing(2, True, b"new"))
    assert pending.begin_send().data == b"new"
    assert not pending.has_waiting


def test_nothing_is_owed_before_the_server_has_it() -> None:
    pending = PendingObservations()
    pending.post(Outgoing(1, True, b""))
    outgoing = pending.begin_send()
    assert pending.newest_acknowledged() is None
    pending.acknowledge(outgoing)
    assert pending.newest_acknowledged() is outgoing


def test_empty_reply_to_what_had_to_be_answered_is_a_failure() -> None:
    pending = PendingObservations()
    due = sent(pending, 1)
    assert pending.answered_empty(due)
    assert pending.newest_acknowledged() is None


def test_empty_reply_to_what_may_be_filtered_is_none() -> None:
    pending = PendingObservations()
    due = sent(pending, 1, must_go=False)
    assert not pending.answered_empty(due)
    assert pending.newest_acknowledged() is None


def test_failure_leaves_the_next_observation_owed() -> None:
    pending = PendingObservations()
    first = sent(pending, 1)
    second = sent(pending, 2)
    assert pending.answered_empty(first)
    assert pending.newest_acknowledged() is second


def test_chunk_that_overtakes_the_acknowledgement_settles_it() -> None:
    pending = PendingObservations()
    pending.post(Outgoing(1, True, b""))
    outgoing = pending.begin_send()
    pending.answered(1)
    pending.acknowledge(outgoing)
    assert pending.newest_acknowledged() is None


def test_chunk_settles_the_older_ones_it_replaced() -> None:
    pending = PendingObservations()
    sent(pending, 1)
    sent(pending, 2)
    third = sent(pending, 3)
    pending.answered(2)
    assert pending.newest_acknowledged() is third


def test_empty_reply_after_the_chunk_came_is_none() -> None:
    pending = PendingObservations()
    due = sent(pending, 1)
    pending.answered(1)
    assert not pending.answered_empty(due)


def test_restart_sends_the_newest_unanswered_again() -> None:
    pending = PendingObservations()
    sent(pending, 1)
    second = sent(pending, 2)
    pending.restart()
    assert pending.newest_acknowledged() is None
    assert pending.begin_send() is second
    assert not second.acknowledged


def test_restart_prefers_what_is_newer_than_the_unanswered() -> None:
    pending = PendingObservations()
    sent(pending, 1)
    pending.post(Outgoing(2, True, b""))
    pending.restart()
    assert pending.begin_send().timestep == 2


def test_restart_says_whether_the_server_was_lost_with_something_it_had_to_answer() -> None:
    pending = PendingObservations()
    assert not pending.restart()
    sent(pending, 1)
    assert pending.restart()
