"""The processes of scripts/bench.sh options, without its models."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from benchmarks.options import Option, process
from benchmarks.processes import Failed


def test_a_killed_process_is_told_and_not_waited_for():
    with process() as one:
        option = Option("bfloat16", one)
        os.kill(option.run(os.getpid), signal.SIGKILL)
        with pytest.raises(Failed, match="bfloat16: its process ended by itself"):
            option.run(time.sleep, 600)


def test_a_stop_does_not_wait_for_what_a_process_is_doing():
    with process() as one:
        pid = one.submit(os.getpid).result()
        one.submit(time.sleep, 600)
    assert not psutil.pid_exists(pid)
