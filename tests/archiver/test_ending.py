"""How a command ends."""

from __future__ import annotations

import os
import signal

import pytest

from archiver.ending import SIGNALS, ended


@pytest.fixture(autouse=True)
def handlers():
    """What the test's process did with signals, afterwards again."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_not_hidden_by_what_cleaning_up_raises(number):
    said = []

    def work():
        try:
            os.kill(os.getpid(), number)
        finally:
            raise ValueError("an entry is open")

    assert ended(work, said.append) == 128 + number
    assert said == [f"stopped by {number.name}"]


def test_nohup_is_heeded():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert ended(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0, print) == 0


def test_a_defect_is_still_one():
    with pytest.raises(ValueError, match="a defect"):
        ended(lambda: (_ for _ in ()).throw(ValueError("a defect")), print)
