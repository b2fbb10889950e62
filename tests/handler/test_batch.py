from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler import batch
from handler.batch import Deadline
from handler.errors import BadRequest, DeadlineExceeded, InternalError, OutOfMemory

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 2000), st.integers(0, 500))
def test_the_plan_holds_every_row_once_within_the_budget(lengths, budget, launch):
    plan = batch.plan(lengths, budget, launch)
    assert sorted(row for rows in plan for row in rows) == list(range(len(lengths)))
    for rows in plan:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


@given(LENGTHS, st.integers(1, 2000), st.integers(0, 500))
def test_neighbours_in_a_micro_batch_are_neighbours_in_length(lengths, budget, launch):
    plan = sorted(batch.plan(lengths, budget, launch), key=lambda rows: -lengths[rows[0]])
    order = [lengths[row] for rows in plan for row in rows]
    assert order == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 2000), st.integers(0, 500))
def test_no_micro_batch_pads_more_than_one_more_forward_would_cost(lengths, budget, launch):
    for rows in batch.plan(lengths, budget, launch):
        assert sum(lengths[rows[0]] - lengths[row] for row in rows) <= launch


@pytest.mark.parametrize(
    ("lengths", "budget", "launch", "plan"),
    [
        ([10, 1, 10, 9], 20, 99, [[0, 2], [3, 1]]),  # filled to the budget
        ([10, 1, 10, 9], 99, 1, [[0, 2, 3], [1]]),  # rather launched again than padded
        ([2, 2, 2, 9, 2, 2], 99, 1, [[0, 1, 2, 4, 5], [3]]),  # the largest first
    ],
)
def test_the_plan(lengths, budget, launch, plan):
    assert batch.plan(lengths, budget, launch) == plan


def test_few_rows_leave_no_lane_without_any():
    lengths = [40, 60, 80, 100]
    assert batch.plan(lengths, 2000, 120) == [[3, 2, 1, 0]]
    assert batch.plan(lengths, 2000, 120, lanes=2) == [[3, 2, 1], [0]]
    assert batch.plan(lengths * 8, 4000, 120, lanes=2) == batch.plan(lengths * 8, 4000, 120)


@given(st.lists(st.text(max_size=2)))
def test_distinct_values_rebuild_the_list(values):
    different, places = batch.distinct(values)
    assert [different[place] for place in places] == values
    assert len(different) == len(set(values))


def test_each_keeps_errors_in_their_slots():
    early = BadRequest("early")

    def step(value):
        if value == 3:
            raise BadRequest("three")
        return 10 // value

    slots = batch.each([1, early, 3, 0, 5], step)
    assert [slots[0], slots[1], slots[4]] == [10, early, 2]
    assert str(slots[2]) == "three"
    assert isinstance(slots[3], InternalError)  # a defect of ours, without its text
    assert "zero" not in str(slots[3])


def later() -> Deadline:
    return Deadline.after(60)


def test_out_of_memory_is_split_until_it_fits():
    tried = []

    def forward(rows):
        tried.append(list(rows))
        if len(rows) > 2:
            raise OutOfMemory("too large")
        return [row * 10 for row in rows]

    assert batch.run([[0, 1, 2, 3, 4], [5]], forward, later()) == {row: row * 10 for row in range(6)}
    assert tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4], [5]]


def test_only_the_row_that_never_fits_is_refused():
    def forward(rows):
        if 2 in rows:
            raise OutOfMemory("too large")
        return rows

    results = batch.run([[0, 1, 2, 3]], forward, later())
    assert isinstance(results.pop(2), OutOfMemory)
    assert results == {0: 0, 1: 1, 3: 3}


def test_a_poisoned_row_costs_only_itself():
    def forward(rows):
        if 1 in rows:
            raise ValueError("poison")
        return rows

    results = batch.run([[0, 1, 2]], forward, later())
    assert isinstance(results.pop(1), InternalError)
    assert results == {0: 0, 2: 2}


def test_after_the_deadline_nothing_is_begun():
    begun = []
    results = batch.run([[0], [1, 2]], begun.append, Deadline.after(0))
    assert begun == []
    assert all(isinstance(results[row], DeadlineExceeded) for row in range(3))


def test_what_was_done_before_the_deadline_is_kept():
    ends = iter([False, True])

    class Clock(Deadline):
        def passed(self):
            return next(ends)

    results = batch.run([[0], [1]], lambda rows: rows, Clock(0.0, 1.0))
    assert results[0] == 0
    assert isinstance(results[1], DeadlineExceeded)


def test_a_defect_is_logged_without_its_text(caplog):
    def fail(_):
        raise ValueError("what the user sent")

    with caplog.at_level("INFO"):
        batch.guarded(fail, 1)
    assert "ValueError" in caplog.text and "test_batch.py" in caplog.text
    assert "what the user sent" not in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_the_loss_of_the_worker_is_not_swallowed(error):
    def fail(_):
        raise error

    with pytest.raises(error):
        batch.guarded(fail, 1)
