"""Sub-commands of `dask pools` that know catalogues. Each imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["demo"]


@click.command()
@click.option(
    "--size",
    default="200 MB",
    show_default=True,
    metavar="BYTES",
    help="Size of the generated forecast, from 1 MB to 2.9 GB; `full` is the largest.",
)
@click.option(
    "--output",
    default=Path("demo.png"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where to write the maps.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Lay the sites out here and leave their files, instead of in a temporary directory.",
)
def demo(size: str, output: Path, keep: Path | None) -> None:
    """Two sites on this machine, one calculation over the data of both.

    Lays out a forecast and a climate scenario at one site, observations and another scenario at the other,
    starts workers at both, and computes the differences: first without pins, which fails, then with them.
    """
    from intake_pools.demo.story import DemoError, run

    try:
        run(size=size, output=output, keep=keep)
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("Stopped; the workers are gone and the files with them.", err=True)
        sys.exit(130)  # 128 + SIGINT, as shells have it
