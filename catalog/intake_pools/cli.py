"""Sub-commands of `dask pools` that know catalogues. Each imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

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
    help="Lay the sites out here, not in a temporary directory, and leave them with their catalogue.",
)
def demo(size: str, output: Path, keep: Path | None) -> None:
    """Two sites on this machine, one calculation over the data of both.

    Lays out a forecast and a climate scenario at one site, observations and another scenario at the other,
    starts workers at both, and computes the differences: first without pins, which fails, then with them.
    """
    with _stoppable():
        from dask_pools.errors import PoolsError
        from intake_pools.demo.story import DemoError, run

        try:
            run(size=size, output=output, keep=keep)
        except (DemoError, PoolsError) as error:
            raise click.ClickException(str(error)) from error


# Functions of Python and Dask that drop whatever exception is raised in them.
_SWALLOWING = ("_gc_callback", "__del__", "getnode")


@contextmanager
def _stoppable() -> Iterator[None]:
    """On Ctrl-C and on the order to terminate, leave by way of everything that cleans up, then exit.

    Both become `KeyboardInterrupt`. Python drops exceptions in some places (a callback of its garbage
    collector, which Dask has; where it looks for the host's address to make a UUID): there the signal is
    put off.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            received.append(number)
        while frame is not None:
            if frame.f_code.co_name in _SWALLOWING:
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nStopped. Nothing was left behind.", err=True)
        sys.exit(128 + (received or [signal.SIGINT])[0])  # as shells have it
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
