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


def test_of_equal_pools_the_first_by_name_is_taken():
    assert place([[], [], [0, 1]], [10, 10, 1], [B, A, FREE])[2] == A


def test_pins_are_kept_downstream_of_others():
    assert place([[], [0], [1]], [10, 1, 1], [A, B, FREE]) == [A, B, B]


def test_a_task_without_pinned_inputs_follows_its_largest_consumer():
    assert place([[], [], [], [0, 2], [1, 2]], [5, 5, 1, 10, 20], [A, B, FREE, FREE, FREE])[2] == B


def test_what_is_tied_to_no_pin_stays_free():
    assert place([[], [], [1]], [1, 1, 1], [A, FREE, FREE]) == [A, FREE, FREE]
