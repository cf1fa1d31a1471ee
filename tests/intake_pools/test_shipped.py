"""The catalogues and the data-centres file that come with the package."""

import pytest

from dask_pools import data_centres
from intake_pools import open_catalog
from intake_pools.locate import locate
from intake_pools.shipped import shipped


@pytest.mark.parametrize(
    ("url", "options", "data_centre", "kind"),
    [
        ("/data/ecmwf/a.nc", None, "ecmwf", "prefix"),
        ("s3://ecmwf-open/a.zarr", None, "ecmwf", "prefix"),
        ("/scratch/me/ecmwf/a.nc", None, "ecmwf", "glob"),
        ("https://data.ecmwf.int/a.nc", None, "ecmwf", "host"),
        ("s3://eumetsat-x/a.nc", None, "eumetsat", "prefix"),
        ("s3://ecmwf-x/a", {"endpoint_url": "https://ncsa.osn.xsede.org"}, "osn-ncsa", "endpoint"),
        ("s3://met-office-atmospheric-model-data/a.nc", None, "aws-eu-west-2", "prefix"),
        ("gs://pangeo-era5/x", None, "gcp-us-central1", "prefix"),
    ],
)  # fmt: skip
def test_every_kind_of_rule_in_the_example_decides_for_something(url, options, data_centre, kind):
    found = locate(url, data_centres=shipped("data-centres.yaml"), storage_options=options)
    assert (found.data_centre, found.rule.kind) == (data_centre, kind)


def test_regions_and_parameters_of_the_example_are_understood():
    known = data_centres.read(shipped("data-centres.yaml"))
    assert known.of_region("s3", "eu-west-2").data_centre == "aws-eu-west-2"
    assert known.of_region("gs", "us-central1").data_centre == "gcp-us-central1"
    assert list(known.with_parameters(["DATA_PATH"])) == ["ecmwf", "eumetsat"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weather.yaml", {"predictions": "ecmwf", "observations": "eumetsat"}),
        ("demo.yaml", {"predictions": "ecmwf", "observations": "eumetsat", "a1b": "ecmwf", "e1": "eumetsat"}),
    ],
)
def test_every_entry_of_the_catalogues_is_located(name, expected):
    catalogue = open_catalog(shipped(name))
    assert {entry: catalogue[entry].data_centre for entry in catalogue} == expected


def test_what_the_example_leaves_out_can_be_put_in():
    text = shipped("data-centres.yaml").read_text()
    for commented in ("    # residency: stay", "# costs:", "#   aws-eu-west-2: {ecmwf"):
        assert commented in text
        text = text.replace(commented, commented.replace("# ", "", 1))
    known = data_centres.parse(text, "data-centres.yaml")
    assert known.data_centres["eumetsat"].residency == "stay"
    assert known.costs["aws-eu-west-2"]["ecmwf"] == 9.0
