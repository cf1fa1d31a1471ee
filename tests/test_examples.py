"""The files under examples/ run, and say what they are meant to show."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SHOWN = {
    "spanning.py": ["31 days", "mean 288.00 K"],
    "replicas.py": [
        "On request: eumetsat",
        "The replicas of temperature differ: ",
        "The next replica is tried",
    ],
    "residency.py": ["twice the mean: 1.0", "'dose' must stay in pool 'hospital'"],
}


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_and_shows_what_it_is_for(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    for text in SHOWN[name]:
        assert text in printed
