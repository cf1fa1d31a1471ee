"""Pins in names and annotations, without a cluster."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from dask.base import tokenize

from dask_pools import UnsupportedSettingError, get_pool, pins, pool, propagate_pools
from dask_pools.pins import pool_of_key, pool_of_name, source_name
from dask_pools.propagate import PlacingOptimizer

TOKEN = tokenize("anything")


@pytest.mark.parametrize("name", ["ecmwf", "aws-eu-west-2", "a.b_c-1", "7"])
def test_a_pool_survives_in_the_name_of_a_key(name):
    key = source_name("air temperature", name, TOKEN)
    assert pool_of_name(key) == name
    assert pool_of_key((key, 0, 3)) == name
    # dask.delayed and dask.optimize add suffixes
    assert pool_of_key(f"{key}-{TOKEN}") == name


def test_a_name_says_whether_what_is_read_may_leave_its_pool():
    staying, free = source_name("x", "aws-eu", TOKEN, stays=True), source_name("x", "aws-eu", TOKEN)
    assert pool_of_key((staying, 0)) == pool_of_key((free, 0)) == "aws-eu"
    assert pins.stays(staying)
    assert pins.label_of_name(staying) == "x"
    assert pins.stays((staying, 0))
    assert pins.stays(f"{staying}-{TOKEN}")
    for other in (free, (free, 0), "stay-calm", f"mean-{staying}", ("sum-" + TOKEN, 0), 3, ()):
        assert not pins.stays(other)


@pytest.mark.parametrize("name", ["", "a b", "a@b", "a/b", "ä", None, 3])
def test_an_odd_name_is_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a pool"), pool(name or ""):
        pass


@pytest.mark.parametrize(
    "key",
    [
        "sum-" + TOKEN,
        ("xarray-t@850-" + TOKEN, 0),
        "read-x",
        ("read", 1),
        3,
        (),
        "read-mean-x@ecmwf-sum-" + TOKEN,
    ],
)
def test_names_of_others_are_not_taken_for_pins(key):
    assert pool_of_key(key) is None


def test_names_of_fused_tasks_do_not_name_half_a_pool():
    # Dask puts the first words of fused keys into the new key.
    from dask.optimization import default_fused_keys_renamer

    read = (source_name("x", "aws-eu", TOKEN), 0)
    renamed = default_fused_keys_renamer([read, ("mean_chunk-" + TOKEN, 0)])
    assert pool_of_key(renamed) in (None, "aws-eu")


def test_the_inner_of_two_pools_wins():
    with pool("ecmwf"):
        with pool("eumetsat"):
            inner = da.ones(4, chunks=2, name="inner")
        outer = da.ones(4, chunks=2, name="outer")
    assert get_pool(inner) == "eumetsat"
    assert get_pool(outer) == "ecmwf"


def test_none_takes_the_pin_of_an_outer_pool_away():
    with pool("ecmwf"), pool(None):
        free = da.ones(4, chunks=2)
    assert get_pool(free) is None


def test_other_resources_survive_inside_a_pool():
    with dask.annotate(resources={"GPU": 1}), pool("ecmwf"):
        x = da.ones(4, chunks=2)
    (layer,) = x.dask.layers.values()
    assert layer.annotations["resources"] == {"GPU": 1, "pool-ecmwf": 0}


def test_get_pool_lists_the_pools_of_a_mixed_collection():
    with pool("ecmwf"):
        x = da.ones(4, chunks=2, name="x")
    with pool("eumetsat"):
        y = da.ones(4, chunks=2, name="y")
    assert get_pool(x + 1) == "ecmwf"
    assert get_pool(da.ones(4)) is None
    assert get_pool("no collection") is None
    with pytest.raises(ValueError, match="'ecmwf', 'eumetsat'"):
        get_pool(x + y)


@pytest.fixture
def switched_off(monkeypatch):
    for setting in ("array_optimize", "delayed_optimize", "bag_optimize"):
        monkeypatch.setitem(dask.config.config, setting, None)
        monkeypatch.delitem(dask.config.config, setting)


def test_entering_a_pool_switches_propagation_on(switched_off):
    with pool("ecmwf"):
        pass
    assert isinstance(dask.config.get("array_optimize"), PlacingOptimizer)


def test_propagate_pools_ends_with_its_block_and_can_be_called_for_good(switched_off):
    with propagate_pools():
        assert isinstance(dask.config.get("bag_optimize"), PlacingOptimizer)
    assert dask.config.get("bag_optimize", "none") == "none"
    propagate_pools()
    assert isinstance(dask.config.get("bag_optimize"), PlacingOptimizer)


def test_settings_can_still_be_written_down_for_workers(switched_off):
    # distributed.SSHCluster and others send them as JSON
    propagate_pools()
    there = dask.config.deserialize(dask.config.serialize(dask.config.config))
    with dask.config.set(array_optimize=there["array_optimize"]):
        assert da.ones(4, chunks=2).sum().compute(scheduler="sync") == 4


def test_an_optimisation_that_was_switched_off_stays_off(switched_off):
    with dask.config.set(array_optimize=False):
        propagate_pools()
        assert dask.config.get("array_optimize") is False


@pytest.mark.parametrize("call", [propagate_pools, lambda: pool("ecmwf").__enter__()])
def test_expression_arrays_are_refused_by_name(call):
    with (
        dask.config.set({"array.query-planning": True}),
        pytest.raises(
            UnsupportedSettingError, match=r"array\.query-planning` is on: its expression arrays drop"
        ),
    ):
        call()


def test_another_optimiser_that_would_drop_pins_is_refused_by_name():
    with (
        dask.config.set(array_optimize=lambda dsk, keys, **kwargs: dsk),
        pytest.raises(UnsupportedSettingError, match=r"array_optimize` is .*, which would drop pins"),
    ):
        propagate_pools()


def test_switched_off_pool_leaves_no_pin():
    with dask.config.set({"pools.propagate": False}), pool("ecmwf"):
        x = da.ones(4, chunks=2)
    assert get_pool(x) is None


def test_without_a_distributed_client_placement_is_ignored():
    with pool("ecmwf"):
        x = da.ones((4, 4), chunks=2, name="threads-x")
    with pool("eumetsat"):
        y = da.ones((4, 4), chunks=2, name="threads-y")
    for scheduler in ("threads", "synchronous"):
        np.testing.assert_array_equal((x + y).sum(0).compute(scheduler=scheduler), np.full(4, 8.0))


def test_annotations_of_a_pin_are_taken_away_alone():
    both = {"retries": 3, "resources": {"GPU": 1, "pool-ecmwf": 0}}
    assert pins.without_pool(both) == {"retries": 3, "resources": {"GPU": 1}}
    assert pins.without_pool({"resources": {"pool-ecmwf": 0}}) == {}
    assert pins.with_pool({"retries": 3}, "a") == {"retries": 3, "resources": {"pool-a": 0}}
