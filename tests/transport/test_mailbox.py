"""A session between threads: when the inference loop is woken, and what is taken in which order."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from async_delta_inference.errors import PeerGoneError, PolicyError, SetupRefusedError
from async_delta_inference.transport import ActionChunk, PolicyNeeds
from async_delta_inference.transport.mailbox import MAX_REPLIES, Filtered, MailboxSession
from async_delta_inference.transport.testing import CONTRACT_POLICY, WAIT_S, contract_observation

DATA = np.ones((1, 3), np.float32).tobytes()


class Mailbox(MailboxSession):
    """Counts how often it rings."""

    def __init__(self) -> None:
        self.rings = 0
        super().__init__(CONTRACT_POLICY, "a client", self._count)

    def _count(self) -> None:
        self.rings += 1

    def exchange(self, timestep: int) -> None:
        self.post(contract_observation(timestep))
        observation = self.take()
        assert observation is not None
        self.answer(observation, DATA)


def test_every_observation_wakes_the_loop() -> None:
    mailbox = Mailbox()
    for timestep in range(3):
        mailbox.post(contract_observation(timestep))
    assert mailbox.rings == 3
    assert mailbox.waiting()
    assert mailbox.peek_timestep() == 2


def test_room_for_an_answer_wakes_the_loop() -> None:
    """Else the observation that waited for it would wait until the client's next one."""
    mailbox = Mailbox()
    for timestep in range(MAX_REPLIES):
        mailbox.exchange(timestep)
    mailbox.post(contract_observation(MAX_REPLIES))
    assert not mailbox.waiting()
    assert mailbox.take() is None
    rings = mailbox.rings
    assert mailbox.next_reply(0.0) is not None
    assert mailbox.rings == rings + 1
    assert mailbox.next_reply(0.0) is not None
    assert mailbox.rings == rings + 1  # nothing has waited for this one
    assert mailbox.waiting()


def test_replies_come_in_order_and_then_the_end() -> None:
    mailbox = Mailbox()
    mailbox.exchange(0)
    for timestep, reply in ((1, mailbox.fail), (2, lambda observation, _: mailbox.pass_over(observation))):
        mailbox.post(contract_observation(timestep))
        observation = mailbox.take()
        assert observation is not None
        reply(observation, "it broke")
    mailbox.end("enough")
    mailbox.end("another reason")
    first, second, third = (mailbox.next_reply(0.0) for _ in range(3))
    assert isinstance(first, ActionChunk)
    assert isinstance(second, PolicyError)
    assert (first.timestep, second.timestep, third) == (0, 1, Filtered(2))
    for _ in range(2):
        with pytest.raises(PeerGoneError, match="enough"):
            mailbox.next_reply(WAIT_S)


def test_nothing_is_taken_nor_answered_after_the_end() -> None:
    mailbox = Mailbox()
    mailbox.post(contract_observation(0))
    observation = mailbox.take()
    assert observation is not None
    mailbox.post(contract_observation(1))
    mailbox.end("enough")
    mailbox.answer(observation, DATA)
    assert mailbox.take() is None
    with pytest.raises(PeerGoneError):
        mailbox.next_reply(0.0)


def test_something_is_owed_from_the_observation_to_the_reply() -> None:
    mailbox = Mailbox()
    assert not mailbox.owes_reply()
    mailbox.post(contract_observation(0))
    assert mailbox.owes_reply()
    observation = mailbox.take()
    assert observation is not None
    assert mailbox.owes_reply()
    mailbox.answer(observation, DATA)
    assert mailbox.owes_reply()
    mailbox.next_reply(0.0)
    assert not mailbox.owes_reply()


@pytest.mark.parametrize("how", ["opened", "refused", "ended"])
def test_waiting_for_the_beginning_ends(how: str) -> None:
    mailbox = Mailbox()
    assert mailbox.wait_until_open(0.0) is None
    needs = PolicyNeeds("a policy")
    happen = {
        "opened": lambda: mailbox.opened(needs),
        "refused": lambda: mailbox.refused("not you"),
        "ended": lambda: mailbox.end("stopped"),
    }[how]
    threading.Timer(0.05, happen).start()
    if how == "opened":
        assert mailbox.wait_until_open(WAIT_S) is needs
    else:
        with pytest.raises((SetupRefusedError, PeerGoneError), match=r"not you|stopped"):
            mailbox.wait_until_open(WAIT_S)
