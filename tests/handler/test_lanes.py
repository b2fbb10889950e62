from __future__ import annotations

import threading

import pytest
import torch

from handler import batch, devices
from handler.batch import Deadline
from handler.errors import DeviceLost, OutOfMemory
from handler.lanes import Lanes

CPU = torch.device("cpu")


def test_pieces_run_at_once_with_a_share_of_the_threads_each():
    meet = threading.Barrier(2, timeout=10)  # breaks unless two are inside at the same time
    threads = set()

    def work():
        meet.wait()
        threads.add((threading.current_thread().name, torch.get_num_threads()))

    torch.set_num_threads(4)
    Lanes(CPU, threads=4, count=2).run(work, pieces=5)
    assert sorted(threads) == [("lane_0", 2), ("lane_1", 2)]
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("count", "pieces"), [(1, 5), (3, 1), (3, 0)])
def test_what_is_alone_has_all_threads(count, pieces):
    seen = []
    torch.set_num_threads(3)
    Lanes(CPU, threads=3, count=count).run(
        lambda: seen.append((threading.current_thread().name, torch.get_num_threads())), pieces
    )
    assert seen == [("MainThread", 3)]


def test_a_lost_device_ends_the_worker_once_all_lanes_are_out():
    meet, done = threading.Barrier(2, timeout=10), []

    def work():
        if meet.wait() == 0:
            raise DeviceLost("gone")
        done.append(True)

    torch.set_num_threads(2)
    with pytest.raises(DeviceLost):
        Lanes(CPU, threads=2, count=2).run(work, pieces=2)
    assert done == [True] and torch.get_num_threads() == 2


def test_every_row_is_computed_once_whatever_the_lanes():
    lanes = Lanes(CPU, threads=3, count=3)

    def forward(rows):
        if len(rows) > 2:
            raise OutOfMemory("too large")
        return [row * 10 for row in rows]

    micro_batches = [list(range(start, start + 7)) for start in range(0, 700, 7)]
    results = batch.run(micro_batches, forward, Deadline.after(60), lanes.run)
    assert results == {row: row * 10 for row in range(700)}


def test_the_number_of_lanes():
    assert [devices.lanes(CPU, threads) for threads in (1, 2, 16)] == [1, 2, devices.MOST_LANES]
    assert devices.lanes(torch.device("cuda"), 16) == 1
