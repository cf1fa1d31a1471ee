"""How what is sent between sites is compressed (`pools.compression`)."""

import dask
import pytest

from dask_pools.config import compression


@pytest.mark.parametrize(
    ("given", "meant"), [("zstd", "zstd"), ("zlib", "zlib"), (None, False), (False, False)]
)
def test_compression_is_what_dask_knows_or_none(given, meant):
    with dask.config.set({"pools.compression": given}):
        assert compression() is meant or compression() == meant


def test_another_is_refused_with_those_there_are():
    with (
        dask.config.set({"pools.compression": "zst"}),
        pytest.raises(ValueError, match=r"'zst' is not known here: use one of .*'zlib', 'zstd', or False"),
    ):
        compression()
