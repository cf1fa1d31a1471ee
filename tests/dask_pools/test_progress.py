"""What is shown while a cluster comes up."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from dask_pools.cluster.progress import Progress


def test_a_terminal_shows_the_latest_step_of_each_site_and_then_nothing() -> None:
    screen = StringIO()
    progress = Progress(Console(file=screen, force_terminal=True, width=100))
    with progress.showing("Bringing up"):
        progress.step("ecmwf", "connecting by SSH")
        progress.step("eumetsat", "failed: no such host\nand more")
        progress.step("ecmwf", "bringing up the mesh")
    shown = screen.getvalue()
    assert "Bringing up" in shown
    assert "ecmwf" in shown
    assert "bringing up the mesh" in shown
    assert "failed: no such host" in shown
    assert "and more" not in shown
    progress.step("ecmwf", "stopping worker ecmwf-0")
    assert screen.getvalue() == shown


def test_elsewhere_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Console(stderr=True))
    progress.step("ecmwf", "too early")
    with progress.showing("Bringing up"):
        for step in ("joining the mesh", "joining the mesh", "starting worker ecmwf-0"):
            progress.step("ecmwf", step)
    assert capsys.readouterr().err == "ecmwf: joining the mesh\necmwf: starting worker ecmwf-0\n"
