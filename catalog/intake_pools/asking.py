"""Where a URL is, asked of those who know: its store, and the workers; for what no rule decides.

Both are off by default: they take time, send requests, and the client may not be allowed to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask

from dask_pools import pins
from dask_pools.places import Rule, endpoint_of, place_of

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["probe", "region_of", "rule_of_region"]

# By endpoint and bucket: a bucket does not move.
_regions: dict[tuple[str, str], str] = {}

# A pool that takes longer than this to look at a URL is as good as one that cannot.
_PATIENCE = 30.0


def rule_of_region(
    url: str, data_centres: DataCentres, storage_options: Mapping[str, Any] | None
) -> tuple[Rule, str] | None:
    """Find the rule for the region of an S3 bucket, if ``pools.ask-regions`` is on.

    Returns
    -------
    (Rule, str) or None
        The rule, and the region that the store named.
    """
    place = place_of(url)
    if place.scheme != "s3" or not place.authority or not dask.config.get("pools.ask-regions"):
        return None
    region = region_of(place.authority, storage_options)
    rule = data_centres.of_region("s3", region) if region else None
    return (rule, region) if rule is not None and region else None


def region_of(bucket: str, storage_options: Mapping[str, Any] | None = None) -> str | None:
    """Ask an S3 store for the region of a bucket (``GetBucketLocation``, else the header of ``HeadBucket``).

    Parameters
    ----------
    bucket : str
    storage_options : mapping, optional
        For s3fs.

    Returns
    -------
    str or None
        None if the store does not say.
    """
    key = endpoint_of(storage_options) or "", bucket
    if key not in _regions:
        import fsspec

        try:
            store = fsspec.filesystem("s3", **(storage_options or {}))
            try:
                # What lies in the oldest region has no constraint.
                answer = store.call_s3("get_bucket_location", Bucket=bucket)
                found = answer["LocationConstraint"] or "us-east-1"
            except Exception:  # often only the owner may ask this
                answer = store.call_s3("head_bucket", Bucket=bucket)
                found = answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"]
        except Exception:  # s3fs is not installed, there is no such bucket, no network …
            return None
        _regions[key] = str(found)
    return _regions[key]


def probe(
    url: str, data_centres: DataCentres | None, storage_options: Mapping[str, Any] | None
) -> list[Rule]:
    """Ask one worker of each pool whether it can see a URL, and how fast, if ``pools.probe`` is on.

    Returns
    -------
    list of Rule
        One of kind ``probe`` for each pool that can, the fastest first; none without a client.
    """
    if not dask.config.get("pools.probe"):
        return []
    from distributed import as_completed, default_client

    try:
        client = default_client()
    except ValueError:
        return []
    if client.asynchronous:
        return []
    pools = {
        pool
        for worker in client.scheduler_info(n_workers=-1)["workers"].values()
        for pool in pins.pools_of_resources(worker.get("resources"))
    }
    if data_centres is not None:
        pools &= set(data_centres.data_centres)
    futures = {
        client.submit(
            _seconds,
            url,
            dict(storage_options or {}),
            resources={pins.resource(pool): 0},
            pure=False,
            priority=100,
        ): pool
        for pool in sorted(pools)
    }
    seconds: dict[str, float] = {}
    try:
        for future in as_completed(futures, timeout=_PATIENCE):
            if future.status == "finished" and (taken := future.result()) is not None:
                seconds[futures[future]] = taken
    except TimeoutError:
        pass  # those that have answered count
    finally:
        client.cancel(list(futures))
    return [
        Rule(pool, f"in {taken:.3f} s", "asked of one worker of each pool", kind="probe")
        for pool, taken in sorted(seconds.items(), key=lambda one: one[1])
    ]


def _seconds(url: str, storage_options: dict[str, Any]) -> float | None:
    """Time that this process takes to see a URL, or None if it cannot."""
    from intake_pools import filesystems, stores

    began = time.perf_counter()
    try:
        if not stores.expand((url,), storage_options):
            return None
        files, path = filesystems.end_file(url, storage_options)
        if not ("*" in url or files.exists(path)):
            return None
    except Exception:  # whatever its file system raises
        return None
    return time.perf_counter() - began
