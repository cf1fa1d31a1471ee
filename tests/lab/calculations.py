"""Calculations over pools that each have something: what they have, and what has to come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from dask_pools import pins
from dask_pools.data_centres import parse
from intake_pools import load_from_catalog
from whereabouts import watch

__all__ = ["calculate", "in_pool", "values"]


def values(number: int) -> xr.Dataset:
    """What a pool has."""
    field = np.random.default_rng(number).random((8, 20, 30))
    return xr.Dataset({"air_temperature": (("realization", "latitude", "longitude"), field)})


def in_pool(pool: str) -> dict[str, Any]:
    """Arguments of `Client.submit` for a new task in a pool."""
    return {"resources": {pins.resource(pool): 0}, "pure": False}


def calculate(client: Client, rules: str, files: Sequence[Path]) -> None:
    """Let pools load what each has, and compare the sum of their means with NumPy's.

    Parameters
    ----------
    client : Client
    rules : str
        A data-centres file.
    files : sequence of Path
        Where the pools have their `values`, numbered from 0; each in a directory of the pool's name.
    """
    known = parse(rules, "data-centres.yaml")
    opened = [load_from_catalog(file, data_centres=known) for file in files]
    with watch(client) as seen:
        result = sum(one.mean("realization") for one in opened).compute()
        reads = seen.seen
    expected = sum(values(number).air_temperature.values.mean(0) for number in range(len(files)))
    np.testing.assert_allclose(result.air_temperature, expected)
    assert {frozenset(read) for read, _ in reads} == {frozenset((file.parent.name,)) for file in files}
    assert all(read == set(ran) for read, ran in reads)
