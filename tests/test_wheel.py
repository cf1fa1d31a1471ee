"""What is published works: the wheel, in an environment of its own, away from the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from readme import examples

REPOSITORY = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(command: list[str | Path], directory: Path) -> str:
    """Run a command that knows nothing of the checkout, and return what it printed."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        list(map(str, command)), cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # Building in isolation downloads the builder, which a developer may have already.
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", directory, REPOSITORY], directory)
    [built] = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """Directory of the programs of a fresh environment with the wheel in it."""
    directory = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", directory / "venv"], directory)
    programs = directory / "venv" / "bin"
    run([programs / "pip", "install", "--quiet", f"{wheel}[demo]"], directory)
    return programs


@pytest.fixture(scope="module")
def workplace(scripts, tmp_path_factory) -> Path:
    """Directory in which the demo has left its two sites, as the README tells to make it."""
    directory = tmp_path_factory.mktemp("workplace")
    output = run([scripts / "dask", "pools", "demo", "--keep", "sites"], directory)
    assert "MisplacedTaskError" in output
    assert (directory / "demo.png").is_file()
    return directory


def test_the_wheel_has_the_types_and_the_catalogues(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "dask_pools/py.typed",
        "intake_pools/py.typed",
        "intake_pools/catalogs/demo.yaml",
        "intake_pools/catalogs/weather.yaml",
        "intake_pools/catalogs/weather-data-centres.yaml",
        "intake_pools/catalogs/data-centres.yaml",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_demo_runs_from_the_wheel(workplace):
    assert sorted(path.name for path in workplace.glob("sites/*")) == [
        "data-centres.yaml",
        "demo.yaml",
        "ecmwf",
        "eumetsat",
    ]


@pytest.mark.parametrize("number", range(len(examples())))
def test_the_code_of_the_readme_runs_unchanged_and_prints_what_it_says(scripts, workplace, number):
    example = examples()[number]
    script = workplace / "example.py"
    script.write_text(example.code)
    assert run([scripts / "python", script], workplace) == example.output
