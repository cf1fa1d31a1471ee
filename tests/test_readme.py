"""README.md says what is so."""

from __future__ import annotations

import re
import tomllib

import yaml

from dask_pools.config import DEFAULTS
from dask_pools.data_centres import load
from readme import README, examples

PYPROJECT = README.with_name("pyproject.toml")


def test_the_range_of_dask_is_that_of_pyproject():
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    ranges = {
        re.sub(r"^\S*?(?=>=)", "", text) for text in dependencies if text.startswith(("dask", "distributed"))
    }
    assert len(ranges) == 1
    lower, upper = re.fullmatch(r">=([\d.]+),<([\d.]+)", ranges.pop()).groups()
    assert f"from {lower} to before {upper}" in README.read_text()


def test_every_setting_is_listed_with_its_default():
    rows = dict(re.findall(r"^\| `pools\.(\S+)` \| (?:`(.*?)`|none) \|", README.read_text(), re.MULTILINE))
    assert rows == {
        name: "" if default is None else str(default) for name, default in DEFAULTS["pools"].items()
    }


def test_the_data_centres_file_that_is_shown_is_valid(tmp_path):
    [shown, *_] = re.findall(r"```yaml\n# data-centres.yaml\n(.*?)```", README.read_text(), re.DOTALL)
    path = tmp_path / "data-centres.yaml"
    path.write_text(shown)
    load(path)
    assert set(yaml.safe_load(shown)["data_centres"]) == {"ecmwf", "eumetsat"}


def test_every_block_of_python_says_what_it_prints():
    assert examples()
    assert all(example.output for example in examples())
