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

# By scheme, endpoint and bucket: a bucket does not move.
_regions: dict[tuple[str, str, str], str] = {}

# A pool that takes longer than this to look at a URL is as good as one that cannot.
_PATIENCE = 30.0


def rule_of_region(
    url: str, data_centres: DataCentres, storage_options: Mapping[str, Any] | None
) -> tuple[Rule, str] | None:
    """Find the rule for the region of a bucket in S3 or Google's store, if ``pools.ask-regions`` is on.

    Returns
    -------
    (Rule, str) or None
        The rule, and the region that the store named.
    """
    place = place_of(url)
    if place.scheme not in _ASKED or not place.authority or not dask.config.get("pools.ask-regions"):
        return None
    region = region_of(place.authority, storage_options, place.scheme)
    rule = data_centres.of_region(place.scheme, region) if region else None
    return (rule, region) if rule is not None and region else None


def region_of(
    bucket: str, storage_options: Mapping[str, Any] | None = None, scheme: str = "s3"
) -> str | None:
    """Ask a store for the region of a bucket.

    Parameters
    ----------
    bucket : str
    storage_options : mapping, optional
        For s3fs or gcsfs.
    scheme : {"s3", "gs"}, optional
        Of S3, ``GetBucketLocation`` is asked, else the header of ``HeadBucket``; of Google's store, the
        metadata of the bucket, whose location is a region or the name of several (``eu``).

    Returns
    -------
    str or None
        None if the store does not say.
    """
    options = dict(storage_options or {})
    key = scheme, endpoint_of(options) or "", bucket
    if key not in _regions:
        try:
            _regions[key] = _ASKED[scheme](bucket, options)
        except Exception:  # its library is not installed, there is no such bucket, no network …
            return None
    return _regions[key]


def _of_s3(bucket: str, options: dict[str, Any]) -> str:
    import fsspec

    store = fsspec.filesystem("s3", **options)
    try:
        # What lies in the oldest region has no constraint.
        answer = store.call_s3("get_bucket_location", Bucket=bucket)
        return str(answer["LocationConstraint"] or "us-east-1")
    except Exception:  # often only the owner may ask this
        answer = store.call_s3("head_bucket", Bucket=bucket)
        return str(answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"])


def _of_google(bucket: str, options: dict[str, Any]) -> str:
    import fsspec

    store = fsspec.filesystem("gs", **options)
    return str(store.call("GET", "b/{}", bucket, json_out=True)["location"]).lower()


_ASKED = {"s3": _of_s3, "gs": _of_google}


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
