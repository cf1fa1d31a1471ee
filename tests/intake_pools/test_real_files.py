"""Files that others wrote, opened in a pool and computed: the same as xarray makes of them here."""

from pathlib import Path

import iris_sample_data
import pytest
import xarray as xr
import yaml
from published import FILES

from dask_pools import get_pool
from intake_pools import open_catalog

SAMPLES = Path(iris_sample_data.path)
REAL = [*sorted(SAMPLES.rglob("*.nc")), *sorted(FILES.glob("*.nc"))]
RULES = {"data_centres": {"ecmwf": {"prefixes": [str(SAMPLES), str(FILES)]}}}

pytestmark = pytest.mark.usefixtures("lazily")


def catalogue(directory: Path, **entries: object):
    sources = {name: {"driver": "netcdf", "args": args} for name, args in entries.items()}
    (directory / "cat.yaml").write_text(yaml.safe_dump({"sources": sources}))
    return open_catalog(directory / "cat.yaml", data_centres=RULES)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_file_of_somebody_else_is_what_xarray_makes_of_it(client, tmp_path, path):
    # What is stored of some is one number a chunk.
    opened = catalogue(tmp_path, data={"urlpath": str(path), "chunks": "auto"})["data"].to_dask()
    lazy = [variable for variable in opened.values() if variable.chunks]
    assert {get_pool(variable) for variable in lazy} == {"ecmwf"}
    with xr.open_dataset(path) as expected:
        xr.testing.assert_identical(opened.compute(), expected)


def test_months_of_an_ocean_model_are_one_dataset(client, tmp_path):
    pattern = str(SAMPLES / "NEMO" / "*.nc")
    args = {"urlpath": pattern, "xarray_kwargs": {"combine": "nested", "concat_dim": "time_counter"}}
    opened = catalogue(tmp_path, data=args)["data"].to_dask()
    with xr.open_mfdataset(pattern, **args["xarray_kwargs"]) as expected:
        assert opened.sizes["time_counter"] == 3
        xr.testing.assert_identical(opened.compute(), expected.compute())
