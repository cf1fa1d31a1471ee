"""Sub-commands of `dask pools` that know catalogues. Each imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    # Dask's imports take a while: a Ctrl-C during them ends as quietly as one later.
    try:
        from intake_pools.demo.story import DemoError, run

        with _terminable():
            run(size=size, output=output, keep=keep)
    except KeyboardInterrupt:
        click.echo("\nStopped. Nothing was left behind.", err=True)
        sys.exit(128 + signal.SIGINT)
    except DemoError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Leave by an exception when told to terminate, so that workers are stopped and files removed."""

    def leave(number: int, frame: object) -> None:
        import traceback; print("LEAVE", "".join(traceback.format_stack(frame)[-12:]))
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
