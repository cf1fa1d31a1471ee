"""What a mesh leaves of a link of 100 Mbit/s, 10 ms each way: for TCP, and for what Dask sends.

Wanted, as a share of what TCP carries over the same link without a mesh:

- TCP through one tunnel: at least 0.93 (0.94 is what WireGuard's headers leave);
- TCP through a relay: at least 0.8;
- a result that one Dask worker sends another, through one tunnel: at least 0.85, through a relay 0.75.

Medians of three rounds, in which the ways take turns. On the lab's network (`make bench-lab`, as root), where
eumetsat and client are behind NAT, and ecmwf is not: eumetsat sends to ecmwf, and through it to the client.
Each site has one core, which it may share with another. What is sent is random, so nothing can be compressed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / place) for place in ("lab", "")]

from dask_inside import start_scheduler, start_worker, stop, transfer  # noqa: E402
from meshes import Mesh, start_mesh  # noqa: E402
from network import THREE_SITES, missing, start_network  # noqa: E402
from rates import rate  # noqa: E402
from topology import one_core_each  # noqa: E402

RAW = "TCP, no mesh"
LIMITS = {
    "TCP, one tunnel": 0.93,
    "TCP, through a relay": 0.8,
    "Dask, one tunnel": 0.85,
    "Dask, through a relay": 0.75,
}


def ways(mesh: Mesh, scheduler: str, nbytes: int) -> dict[str, Callable[[], float]]:
    """Ways to send so many bytes; each gives Mbit/s."""
    client, ecmwf, eumetsat = (mesh.hands[name] for name in ("client", "ecmwf", "eumetsat"))

    def dask(target: str) -> float:
        return nbytes * 8e-6 / client.call(transfer, scheduler, "eumetsat", target, nbytes)

    return {
        RAW: lambda: rate(eumetsat, ecmwf, mesh.network["ecmwf"].at.host, nbytes),
        "TCP, one tunnel": lambda: rate(eumetsat, ecmwf, str(mesh.address("ecmwf")), nbytes),
        "TCP, through a relay": lambda: rate(eumetsat, client, str(mesh.address("client")), nbytes),
        "Dask, one tunnel": lambda: dask("ecmwf"),
        "Dask, through a relay": lambda: dask("client"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=float, default=64, help="of what is sent, in MB (64)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if why := missing():
        print(f"Not run: {why}", file=sys.stderr)
        return 1
    links = one_core_each(THREE_SITES, sorted(os.sched_getaffinity(0)))
    with start_network(links) as network, start_mesh(network) as mesh:
        scheduler = mesh.hands["client"].call(start_scheduler, str(mesh.address("client")))
        for name, hand in mesh.hands.items():
            hand.call(start_worker, scheduler, str(mesh.address(name)), name)
        all_ways = ways(mesh, scheduler, int(options.size * 1e6))
        mesh.hands["client"].call(transfer, scheduler, "eumetsat", "client", 1000)  # connections are made
        rates: dict[str, list[float]] = {name: [] for name in all_ways}
        for _ in range(options.rounds):
            for name, way in all_ways.items():
                rates[name].append(way())
        for hand in mesh.hands.values():
            hand.call(stop)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    table = Table(title=f"{options.size:g} MB over a link of 100 Mbit/s, median of {options.rounds}")
    table.add_column("way")
    for column in ("Mbit/s", "each", "of the link", "wanted"):
        table.add_column(column, justify="right")
    missed = []
    for name, median in medians.items():
        share, limit = median / medians[RAW], LIMITS.get(name)
        if limit is not None and share < limit:
            missed.append(name)
        each = " ".join(f"{one:.1f}" for one in rates[name])
        table.add_row(name, f"{median:.1f}", each, f"{share:.2f}", "" if limit is None else f"≥ {limit}")
    Console().print(table)
    print(f"Less than wanted: {', '.join(missed)}." if missed else "All as wanted.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
