"""Sub-commands of `dask pools` that know catalogues. Each imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["catalog", "demo", "locate"]


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
    with _stoppable() as check:
        from dask_pools.errors import PoolsError
        from intake_pools.demo.story import DemoError, run

        try:
            run(size=size, output=output, keep=keep, check=check)
        except (DemoError, PoolsError) as error:
            raise click.ClickException(str(error)) from error


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option(
    "--data-centres",
    "data_centres",
    multiple=True,
    metavar="FILE",
    help="Data-centres file, several of them merged; by default the one that dask.config names.",
)
@click.option("--endpoint", metavar="URL", help="S3 endpoint at which the buckets are.")
def locate(urls: tuple[str, ...], data_centres: tuple[str, ...], endpoint: str | None) -> None:
    """Say which data centre hosts each URL, which rule decided, and which others match.

    Exits with 1 if one of them is hosted by none.
    """
    from dask_pools.errors import PoolsError
    from intake_pools.locate import locate as find
    from intake_pools.urls import public_url

    options = {"endpoint_url": endpoint} if endpoint else None
    missing = False
    try:
        rules = _rules(data_centres)
    except PoolsError as error:
        raise click.ClickException(str(error)) from error
    for url in urls:
        try:
            found = find(url, data_centres=rules, storage_options=options)
        except LookupError as error:
            missing = True
            click.echo(f"{public_url(url)}: not located. {error}")
            continue
        except PoolsError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{public_url(url)}: {found.data_centre}, by {found.evidence}")
        for rule in found.runners_up:
            click.echo(f"  else {rule.data_centre}, by {rule}")
    if missing:
        sys.exit(1)


def _rules(files: tuple[str, ...]) -> DataCentres | None:
    from dask_pools import data_centres

    return data_centres.load(list(files)) if files else None


@click.group()
def catalog() -> None:
    """Look through Intake catalogues: where each entry lives, and whether it can be opened."""


_CATALOGUE = click.argument("catalogue", metavar="CATALOG")
_FILES = click.option(
    "--data-centres",
    "data_centres",
    multiple=True,
    metavar="FILE",
    help="Data-centres file, several of them merged, instead of the one that the catalogue names.",
)
_DEPTH = click.option(
    "--depth", default=5, show_default=True, type=click.IntRange(1, 20), help="Levels of nested catalogues."
)


@catalog.command("list")
@_CATALOGUE
@_FILES
@_DEPTH
def list_(catalogue: str, data_centres: tuple[str, ...], depth: int) -> None:
    """List the entries of a catalogue, those of nested ones too, with the data centre of each."""
    from dask_pools.errors import PoolsError

    try:
        for name, place, _, _ in _entries(catalogue, data_centres, depth):
            click.echo(f"{name}\t{place}")
    except PoolsError as error:
        raise click.ClickException(str(error)) from error


@catalog.command()
@_CATALOGUE
@_FILES
@_DEPTH
@click.option("--open", "opening", is_flag=True, help="Open each entry, too: in its pool, with --scheduler.")
@click.option("--scheduler", metavar="ADDRESS", help="Of the Dask scheduler through which to open entries.")
def check(
    catalogue: str, data_centres: tuple[str, ...], depth: int, opening: bool, scheduler: str | None
) -> None:
    """Check of every entry of a catalogue whether it can be located and, with --open, opened.

    Exits with 1 if an entry that should be opened in a pool cannot be located or opened, or one is broken.
    """
    from contextlib import nullcontext

    from distributed import Client
    from rich.console import Console
    from rich.table import Table

    from dask_pools.errors import PoolsError

    table = Table("entry", "data centre", "decided by", *(["opened"] if opening else []))
    failed = 0
    try:
        client = Client(scheduler) if scheduler else nullcontext()
    except (OSError, TimeoutError) as error:
        raise click.ClickException(f"There is no Dask scheduler at {scheduler}: {error}") from error
    with client:
        try:
            for name, place, detail, source in _entries(catalogue, data_centres, depth):
                opened = ""
                if place in ("unlocated", "unsupported"):
                    failed += 1
                elif opening and source is not None:
                    try:
                        source().to_dask()
                        opened = "yes"
                    except PoolsError as error:
                        failed += 1
                        opened = str(error)
                table.add_row(name, place, detail, *([opened] if opening else []))
        except PoolsError as error:
            raise click.ClickException(str(error)) from error
    # A pipe has no width; a table that is cut would be of no use there.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    click.echo(f"{table.row_count} entries, {failed} of them with a problem.")
    if failed:
        sys.exit(1)


def _entries(
    path: str, data_centres: tuple[str, ...], depth: int
) -> Iterator[tuple[str, str, str, Callable[[], Any] | None]]:
    """Walk through a catalogue: name, place, detail, and what makes the source of each entry of ours."""
    from intake_pools import open_catalog

    yield from _walk(open_catalog(path, data_centres=_rules(data_centres)), "", depth)


def _walk(
    catalogue: Any, prefix: str, depth: int
) -> Iterator[tuple[str, str, str, Callable[[], Any] | None]]:
    from functools import partial
    from operator import getitem

    from dask_pools.errors import PoolsError

    for name, place, detail in catalogue.summary():
        full = prefix + name
        if place != "catalogue":
            ours = place not in ("Intake", "unlocated", "unsupported")
            yield full, place, detail, partial(getitem, catalogue, name) if ours else None
        elif depth > 1:
            try:
                nested = catalogue[name]
            except PoolsError as error:
                yield full, "unsupported", str(error), None
            else:
                yield from _walk(nested, f"{full}.", depth - 1)


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """On Ctrl-C and on the order to terminate, leave by way of everything that cleans up, then exit.

    Both become `KeyboardInterrupt`. Python and Dask drop exceptions in some places: in callbacks of the
    garbage collector and of weak references and in finalisers with a message, where Python looks for the
    host's address without one. So there is a function to call now and then, which raises it again.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        while frame is not None:
            if frame.f_code.co_name in ("_gc_callback", "__del__", "_remove", "remove"):
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield check
    except KeyboardInterrupt:
        click.echo("\nStopped. Nothing was left behind.", err=True)
        sys.exit(128 + (received or [signal.SIGINT])[0])  # as shells have it
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
