"""The demo: it runs from one command, shows what it promises, refuses bad input, leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from intake_pools.cli import demo
from intake_pools.demo import sites
from intake_pools.demo.isolation import Isolation, find_isolation
from intake_pools.demo.picture import Map, draw
from intake_pools.shipped import shipped

iris_sample_data = pytest.importorskip("iris_sample_data")
pytest.importorskip("matplotlib")

DASK = shutil.which("dask", path=str(Path(sys.executable).parent)) or "dask"
PNG = b"\x89PNG\r\n\x1a\n"


class Demo:
    """A run of `dask pools demo` in a process of its own, whose descendants can all be found."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.mark = f"DEMO_UNDER_TEST={uuid.uuid4()}"
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [DASK, "pools", "demo", "--size", "1 MB", *arguments],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(self.temporary), name: value, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, beginning: str) -> None:
        for line in self.process.stdout:
            if line.startswith(beginning):
                return
        raise AssertionError(f"no line begins with {beginning!r}")

    def finish(self) -> str:
        return self.process.communicate(timeout=240)[0]

    def processes(self) -> list[int]:
        """Every process that came from this run and is still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:  # ended meanwhile
                continue
        return found

    def wait_until_all_have_left(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.processes() and time.monotonic() < end:
            time.sleep(0.1)
        assert self.processes() == []


@pytest.fixture
def start(tmp_path):
    """Start a demo, and make sure that no process of it outlives the test."""
    started = []

    def start_one(*arguments: str, **environment: str) -> Demo:
        started.append(Demo(tmp_path, *arguments, **environment))
        return started[-1]

    yield start_one
    for run in started:
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)


# A run takes seconds, but several start processes of their own on a machine that has other things to do.
long = pytest.mark.timeout(300)


@long
@pytest.mark.slow
@pytest.mark.skipif(not find_isolation().is_real, reason="mount name spaces are not allowed here")
def test_the_demo_shows_the_failures_then_right_results_and_cleans_up(start, tmp_path):
    run = start()
    output = run.finish()
    assert run.process.returncode == 0, output
    assert f"Isolation: {find_isolation().value}" in output
    assert "FileNotFoundError: " in output
    assert "MisplacedTaskError: air_temperature[" in output
    assert output.count("NumPy's ±") == 2
    # From no workers to some to none.
    assert re.findall(r"ecmwf: (\d) workers? × 2 threads.*, eumetsat: (\d) worker", output) == [
        ("0", "0"),
        ("1", "1"),
        ("0", "0"),
    ]
    assert (tmp_path / "demo.png").read_bytes().startswith(PNG)
    assert f"Maps of both differences: {tmp_path / 'demo.png'}" in output
    assert run.processes() == []
    assert list(run.temporary.iterdir()) == []


@long
@pytest.mark.slow
def test_without_name_spaces_the_demo_says_so_and_still_shows_a_failure(start, tmp_path):
    # Without `unshare` on the path there is no name space to be had.
    run = start("--keep", "sites", "--output", "map.pdf", PATH=str(tmp_path))
    output = run.finish()
    assert run.process.returncode == 0, output
    assert f"Isolation: {Isolation.DIRECTORIES.value}" in output
    assert "MisplacedTaskError: air_temperature[" in output
    assert "FileNotFoundError" not in output
    assert output.count("NumPy's ±") == 2
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
    # What it was told to keep is there, and nothing else.
    assert sorted(path.name for path in (tmp_path / "sites").glob("*/*")) == [
        "A1B_north_america.nc",
        "E1_north_america.nc",
        "observations.nc",
        "predictions.nc",
    ]
    assert run.processes() == []
    assert list(run.temporary.iterdir()) == []


@long
@pytest.mark.slow
@pytest.mark.parametrize(
    # While the pools come up, and when they are there.
    ("number", "line"),
    [(signal.SIGINT, "cat.e1"), (signal.SIGTERM, "<LocalPools")],
)
def test_stopping_the_demo_leaves_no_process_and_no_file(start, number, line):
    run = start(PYTHONUNBUFFERED="1")
    run.read_until(line)
    # As a terminal does it: to every process of the group.
    os.killpg(run.process.pid, number)
    output = run.finish()
    assert run.process.returncode == 128 + number, output
    assert "Stopped. Nothing was left behind." in output
    run.wait_until_all_have_left(5)
    assert list(run.temporary.iterdir()) == []


@long
@pytest.mark.slow
def test_workers_leave_when_the_demo_is_killed_outright(start):
    run = start(PYTHONUNBUFFERED="1")
    run.read_until("<LocalPools")
    run.process.kill()
    run.wait_until_all_have_left(30)


@pytest.mark.parametrize("size", ["much", "0", "-5 MB", "10 kB", "3 GB", "200 MegaByte", ""])
def test_a_size_that_does_not_do_is_refused_before_anything_is_made(tmp_path, size):
    result = CliRunner().invoke(demo, ["--size", size, "--output", str(tmp_path / "demo.png")])
    assert result.exit_code == 1
    assert f"--size {size!r} is not between 1 MB and 2.92 GB" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/demo.png", "No such file or directory"),
        ("directory.png", "Is a directory"),
        ("demo.txt", "needs a suffix such as .png"),
        ("demo", "needs a suffix such as .png"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, name, reason):
    (tmp_path / "directory.png").mkdir()
    result = CliRunner().invoke(demo, ["--output", str(tmp_path / name)])
    assert result.exit_code == 1
    assert reason in result.output
    assert "Site " not in result.output


def test_an_earlier_picture_survives_a_refusal(tmp_path):
    output = tmp_path / "demo.png"
    output.write_bytes(b"earlier")
    (tmp_path / "file").touch()
    result = CliRunner().invoke(demo, ["--output", str(output), "--keep", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "cannot be made a directory" in result.output
    assert output.read_bytes() == b"earlier"


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    result = CliRunner().invoke(
        demo, ["--output", str(tmp_path / "demo.png"), "--keep", str(tmp_path / "kept")]
    )
    assert result.exit_code == 1
    assert "0.98 kiB left, and the forecast takes 190.53 MiB" in result.output


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    fractions = [
        fraction
        for _, fraction in sites.lay_out(
            root, sites.FieldShape.of_size(2_000_000), Path(iris_sample_data.path)
        )
    ]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    return sites.Sites(sites.directories_below(root))


def test_the_full_size_is_the_grid_of_the_original():
    assert sites.FieldShape.of_size(sites.FULL_SIZE) == sites.FieldShape(960, 1280)
    assert sites.FULL_SIZE == 18 * 33 * 960 * 1280 * 4


def test_the_generated_pair_has_the_shape_of_the_original(laid_out):
    with xr.open_dataset(laid_out.directories["ecmwf"] / "predictions.nc") as predictions:
        variable = predictions["air_temperature"]
        assert variable.dims == ("realization", "height", "latitude", "longitude")
        assert variable.shape[:2] == (18, 33)
        assert variable.dtype == np.float32
        assert 150 < variable.min() < variable.max() < 350
    with xr.open_dataset(laid_out.directories["eumetsat"] / "observations.nc") as observations:
        assert observations["air_temperature"].shape == variable.shape[2:]
        np.testing.assert_array_equal(observations["latitude"], predictions["latitude"])


def test_what_is_expected_is_what_xarray_makes_of_the_files(laid_out):
    def opened(site: str, name: str) -> xr.DataArray:
        with xr.open_dataset(laid_out.directories[site] / f"{name}.nc") as dataset:
            return dataset["air_temperature"].load().astype("f8")

    forecast = opened("ecmwf", "predictions").mean("realization").isel(height=sites.HEIGHT)
    np.testing.assert_allclose(
        laid_out.expected_forecast_difference, forecast - opened("eumetsat", "observations"), atol=1e-4
    )
    period = slice(*sites.PERIOD)
    a1b, e1 = opened("ecmwf", "A1B_north_america"), opened("eumetsat", "E1_north_america")
    assert a1b.sel(time=period).sizes["time"] == 30
    np.testing.assert_allclose(
        laid_out.expected_scenario_difference,
        a1b.sel(time=period).mean("time") - e1.sel(time=period).mean("time"),
        atol=1e-4,
    )


@pytest.mark.parametrize("field", [np.zeros((2, 3)), np.array([[-1.0, 2, 3], [4, 5, np.nan]])])
def test_maps_are_drawn_of_any_values(tmp_path, field):
    values = xr.DataArray(
        field, {"latitude": [-10.0, 10.0], "longitude": [200.0, 210.0, 220.0]}, ("latitude", "longitude")
    )
    draw([Map("A title", values, "K")], tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)


def test_every_shipped_catalogue_is_found_and_a_missing_one_lists_them():
    assert shipped("demo.yaml").is_file()
    with pytest.raises(FileNotFoundError, match=r"These do: .*demo\.yaml, .*weather\.yaml"):
        shipped("weather")
