"""How a command ends: 0 done, 1 refused, 128 + n stopped by signal n; each reason is one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

from archiver.errors import Interrupted, Refused

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ended(work: Callable[[], int], say: Callable[[str], None], after_signal: str = "") -> int:
    """Does the work and returns its status, or that of what stopped it.

    Args:
        work: the command; what it raises has cleaned up behind it.
        say: writes a line.
        after_signal: added to the line that names the signal.
    """
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup(1)
            signal.signal(number, _interrupt)
    try:
        return _uncovered(work)
    except Refused as error:
        for problem in error.problems:
            say(f"error: {problem}")
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(f"error: {place}{error.strerror or error}")
    except Interrupted as error:
        say(f"stopped by {signal.Signals(error.number).name}{after_signal}")
        return 128 + error.number
    return 1


def _uncovered(work: Callable[[], int]) -> int:
    """Does the work; a signal's exception is not hidden by one that the clean-up behind it raised.

    A ZipFile that is left while an entry is open raises a ValueError of its own (zipfile.py, ZipFile.close).
    """
    try:
        return work()
    except Exception as error:
        under: BaseException | None = error
        while under is not None:
            if isinstance(under, Interrupted):
                raise under from None
            under = under.__context__
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # one is enough; clean-up is not to be interrupted
    raise Interrupted(number)
