"""`dask pools up`, `adopt`, `down` and `add`: a cluster from one command, and from another terminal.

`up` and `adopt` stay in the foreground for as long as the cluster lives. The other two, and `client` in
Python, find it by a socket in a directory that only this user can look into. It knows what a cluster can do,
and nothing of sites.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
from distributed import Client, Security
from distributed.core import Status
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dask_pools import data_centres
from dask_pools.cluster.orphans import adopt as take_over
from dask_pools.cluster.orphans import clean_up
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.progress import Progress
from dask_pools.cluster.record import orphans, records
from dask_pools.cluster.scheduler_process import scheduler_spec
from dask_pools.errors import PoolsError
from dask_pools.propagate import connect
from dask_pools.sites.home import Home, HomeError, homes

__all__ = ["add", "adopt", "client", "down", "up", "whereabouts"]

# Of the directory of a cluster that is up, beside those that agents have on their hosts.
PREFIX = "up-"
# Seconds that an answer may take: closing waits for every site.
ANSWER = 120.0
# Seconds between two looks at whether the cluster still runs.
LOOK = 0.5
# What is said to whoever presses Ctrl-C a second time.
AGAIN = b"It is being taken down, for at most two minutes. Ctrl-\\ leaves the rest to the sites themselves.\n"
# Seconds for which a scheduler without a cluster waits for `dask pools adopt`.
OUTLIVES = 3600.0


class NothingUpError(PoolsError):
    """No cluster of this user is up on this machine, or not the one that is meant."""


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--host", help="Address of this machine that sites reach (network: tls).")
@click.option("--dashboard-address", default=":0", show_default=True, help="Where Dask's dashboard listens.")
def up(file: Path, host: str | None, dashboard_address: str) -> None:
    """Bring up the cluster that a data-centres FILE describes, until Ctrl-C or `dask pools down`."""
    _keep(f"Bringing up the pools of {file}", partial(_make, file, host, dashboard_address))


@click.command()
@click.argument("address", required=False)
def adopt(address: str | None) -> None:
    """Take over a cluster whose process has died, until Ctrl-C or `dask pools down`.

    Of several, the one with the scheduler at ADDRESS. Its workers and whoever is connected go on.
    """
    _keep("Taking it over", lambda progress: take_over(address))


def _make(file: Path, host: str | None, dashboard_address: str, progress: Progress) -> PoolCluster:
    known = data_centres.load(file)
    if any(one.site is not None for one in known.data_centres.values()):
        # Only who has sites needs what speaks SSH (intake-pools[sites]).
        from dask_pools.cluster.multi_site import MultiSiteCluster

        return MultiSiteCluster(known, host=host, dashboard_address=dashboard_address, on_step=progress.step)
    if host is not None:
        raise click.UsageError("--host is for clusters with sites (network: tls).")
    return PoolCluster(known, scheduler=scheduler_spec("process", dashboard_address, outlives=OUTLIVES))


def _keep(what: str, make: Callable[[Progress], PoolCluster]) -> None:
    """Make a cluster, and keep it until it is to end."""
    console, progress = Console(), Progress(Console(stderr=True))
    try:
        with _interrupted_once():
            start = time.monotonic()
            with progress.showing(what):
                cluster = make(progress)
            try:
                with _reachable(cluster) as listening:
                    _show(console, cluster, time.monotonic() - start)
                    answer = _serve(cluster, listening)
                    with progress.showing("Taking it down"):
                        cluster.close(timeout=ANSWER)
                    if answer is not None:
                        _say(answer, {"closed": True})
            finally:
                with progress.showing("Taking it down"):
                    cluster.close(timeout=ANSWER)
    except KeyboardInterrupt:
        console.print("Down.")
    except (PoolsError, ValueError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Let Ctrl-C, or SIGTERM, end what is inside once; a second would stop the taking down half-way."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        again, interrupted = interrupted, True
        # Not by what may be in the middle of a line just now.
        os.write(2, AGAIN if again else b"Interrupted: taking it down.\n")
        if not again:
            raise KeyboardInterrupt

    # What runs in the background of a shell's script ignores Ctrl-C, and is to go on doing so.
    heeded = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command()
@click.argument("address", required=False)
@click.option("--all", "everything", is_flag=True, help="All that are up, and all that died ones have left.")
def down(address: str | None, everything: bool) -> None:
    """Take down the cluster that is up on this machine; of several, the one with the scheduler at ADDRESS."""
    if everything:
        return _down_all()
    try:
        _ask({"do": "down"}, address)
    except NothingUpError as error:
        click.echo(str(error))
    except PoolsError as error:
        raise click.ClickException(str(error)) from None


def _down_all() -> None:
    done = True
    try:
        for home in [home for home in homes() if home.cluster.startswith(PREFIX)]:
            if home.in_use():
                shown = _ask_one(home, {"do": "show"})
                _ask_one(home, {"do": "down"})
                click.echo(f"The cluster at {shown['address']} is down.")
            elif home.make():
                home.remove()
        done = clean_up(click.echo)
    except PoolsError as error:
        raise click.ClickException(str(error)) from None
    for record in records():
        if not record.owner.is_here:
            click.echo(f"The cluster at {record.scheduler} is one of {record.owner.machine.host}: see there.")
        elif record.owner.lives:
            click.echo(f"The cluster at {record.scheduler} is process {record.owner.pid}'s, which lives.")
    if not done:
        raise SystemExit(1)


@click.command()
@click.argument("pool")
@click.argument("count", type=click.IntRange(1))
@click.option("--address", help="Of the scheduler, where several clusters are up.")
def add(pool: str, count: int, address: str | None) -> None:
    """Add COUNT workers to POOL of the cluster that is up on this machine."""
    try:
        answer = _ask({"do": "add", "pool": pool, "count": count}, address)
    except PoolsError as error:
        raise click.ClickException(str(error)) from None
    if "error" in answer:
        raise click.ClickException(answer["error"])
    click.echo(f"{pool}: {answer['wanted']} worker{'' if answer['wanted'] == 1 else 's'} wanted")


def client(address: str | None = None, **kwargs: Any) -> Client:
    """Connect with a cluster that `dask pools up` keeps on this machine.

    Parameters
    ----------
    address : str, optional
        Of its scheduler, where several clusters are up.
    **kwargs
        Further arguments of `distributed.Client`.

    Raises
    ------
    NothingUpError
        If there is none, or several and none is named.
    """
    found, security = whereabouts(address)
    made = Client(found, security=security, **kwargs)
    if not made.asynchronous:
        connect(made)
    return made


def whereabouts(address: str | None = None) -> tuple[str, Security | None]:
    """Look up where the scheduler of a cluster is that is up on this machine, and what it is reached with.

    Parameters
    ----------
    address : str, optional
        Of the scheduler, where several clusters are up.

    Raises
    ------
    NothingUpError
        If there is none, or several and none is named.
    """
    shown = _ask({"do": "show"}, address)
    security = Security(require_encryption=True, **shown["tls"]) if shown["tls"] else None
    return shown["address"], security


# Being found


@contextmanager
def _reachable(cluster: PoolCluster) -> Iterator[socket.socket]:
    """Listen for the other commands."""
    home = Home(f"{PREFIX}{secrets.token_hex(8)}")
    if not home.make():
        raise HomeError(f"{home.path} is in use by another process.")
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            before = os.umask(0o177)
            try:
                listening.bind(os.fspath(home.socket))
            finally:
                os.umask(before)
            listening.listen()
            yield listening
    finally:
        home.remove()


def _serve(cluster: PoolCluster, listening: socket.socket) -> socket.socket | None:
    """Answer until the cluster is to close; whom to tell when it has."""
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        while cluster.status == Status.running and cluster.scheduler.status == Status.running:
            if not selector.select(LOOK):
                continue
            asking, _ = listening.accept()
            asking.settimeout(5)
            try:
                question = json.loads(asking.makefile("rb").readline())
                if question["do"] == "down":
                    return asking
                answer = _answer(cluster, question)
            except (OSError, ValueError, LookupError, TypeError) as error:
                answer = {"error": str(error)}
            _say(asking, answer)
    return None


def _answer(cluster: PoolCluster, question: Mapping[str, Any]) -> dict[str, Any]:
    if question["do"] == "add":
        pool = question["pool"]
        if pool not in (pools := cluster.pools_of_its_own):
            raise ValueError(f"There is no pool {pool!r} here. Pools: {', '.join(pools)}.")
        wanted = cluster.wanted(pool) + question["count"]
        cluster.scale(pool, wanted)
        return {"wanted": wanted}
    security = cluster.security
    files = ("tls_ca_file", "tls_client_cert", "tls_client_key")
    tls = {name: getattr(security, name) for name in files} if security.tls_ca_file else {}
    return {"address": cluster.scheduler_address, "tls": tls}


def _say(to: socket.socket, answer: Mapping[str, Any]) -> None:
    with to, suppress(OSError):
        to.sendall(json.dumps(answer).encode() + b"\n")


def _ask(question: Mapping[str, Any], address: str | None) -> dict[str, Any]:
    """Ask the one cluster that is up, or the one at an address."""
    found = [home for home in homes() if home.cluster.startswith(PREFIX) and home.in_use()]
    if address is not None or len(found) > 1:
        addresses = {_ask_one(home, {"do": "show"}).get("address"): home for home in found}
        if address not in addresses:
            known = ", ".join(sorted(filter(None, addresses))) or "none"
            raise NothingUpError(f"Say which cluster is meant, by the address of its scheduler: {known}.")
        found = [addresses[address]]
    if not found and orphans():
        raise NothingUpError(
            "No cluster is up here, but there is one whose process has died: `dask pools adopt` takes it "
            "over, if its scheduler lives, and `dask pools down --all` ends what is left of it."
        )
    if not found:
        raise NothingUpError("No cluster is up here: dask pools up data-centres.yaml")
    return _ask_one(found[0], question)


def _ask_one(home: Home, question: Mapping[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(ANSWER)
        try:
            asking.connect(os.fspath(home.socket))
            asking.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(asking.makefile("rb").readline() or b"{}")
        except (OSError, ValueError) as error:
            raise NothingUpError(f"The cluster at {home.path} does not answer: {error}.") from None
    return dict(answer)


def _show(console: Console, cluster: PoolCluster, seconds: float) -> None:
    """Print where it is and what each pool has."""
    # Not as markup: addresses of the mesh have brackets.
    console.print(f"Scheduler  {cluster.scheduler_address}", soft_wrap=True, markup=False, highlight=False)
    if cluster.dashboard_link:
        console.print(f"Dashboard  {cluster.dashboard_link}", soft_wrap=True, markup=False, highlight=False)
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in ("pool", "at", "workers", ""):
        table.add_column(column, justify="right" if column == "workers" else "left")
    failures, sites = cluster.failures, getattr(cluster, "sites", {})
    for pool in cluster.pools_of_its_own:
        at, state = (sites[pool].host.host, sites[pool].state) if pool in sites else ("this machine", "")
        table.add_row(pool, at, str(len(cluster.pools[pool])), Text(failures.get(pool, state)))
    console.print(table)
    console.print(
        f"Up after {seconds:.1f} s. In Python on this machine: dask_pools.cluster.up.client(). Ctrl-C or "
        "`dask pools down` takes it down.",
        soft_wrap=True,
        highlight=False,
    )
