"""The rule that places free tasks, on plain models."""

from __future__ import annotations

from dask_pools.placement.assign import assign
from dask_pools.placement.model import FREE, Model

A, B = 0, 1


def place(inputs, nbytes, pinned):
    return assign(Model(["a", "b"], inputs, nbytes, pinned))


def test_a_task_goes_where_most_of_its_input_bytes_are():
    assert place([[], [], [0, 1]], [10, 20, 1], [A, B, FREE]) == [A, B, B]


def test_bytes_of_one_pool_add_up():
    assert place([[], [], [], [0, 1, 2]], [10, 10, 15, 1], [A, A, B, FREE])[3] == A


def test_of_equal_pools_the_one_with_less_to_do_is_taken():
    assert place([[], [], [0], [1, 0]], [10, 10, 1, 1], [B, A, B, FREE])[3] == A
    assert place([[], [], [1], [1, 0]], [10, 10, 1, 1], [B, A, A, FREE])[3] == B


def test_pins_are_kept_downstream_of_others():
    assert place([[], [0], [1]], [10, 1, 1], [A, B, FREE]) == [A, B, B]


def test_a_task_without_pinned_inputs_follows_its_largest_consumer():
    assert place([[], [], [], [0, 2], [1, 2]], [5, 5, 1, 10, 20], [A, B, FREE, FREE, B])[2] in (A, B)


def test_what_is_tied_to_no_pin_stays_free():
    assert place([[], [], [1]], [1, 1, 1], [A, FREE, FREE]) == [A, FREE, FREE]
