"""Sizes and times as people write them."""

from __future__ import annotations

import pytest

from dask_pools.config import in_bytes, in_seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90 s", 90), ("2 min", 120), ("10MIN", 600), ("2 h", 7200), ("300ms", 0.3), (7, 7)],
)
def test_a_time_is_a_number_or_has_a_unit(written: str | float, seconds: float) -> None:
    assert in_seconds(written) == seconds


@pytest.mark.parametrize("written", ["2 moons", "", "-1 s", "nan", float("inf"), None, [60]])
def test_what_is_no_time_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="is no time; write one as in 90 s, 10 min or 2 h"):
        in_seconds(written)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["much", "-1 B", None])
def test_what_is_no_size_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="as in '500 MB'"):
        in_bytes(written)  # type: ignore[arg-type]
