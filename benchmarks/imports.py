"""What importing intake_pools adds to importing xarray and distributed: at most 150 ms.

Each import is timed inside a fresh process. The two kinds take turns, so that a busy moment of the machine
falls on both, and their medians are compared.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

LIMIT = 0.150
ROUNDS = 7

IMPORTS = {
    "xarray, distributed": "import xarray, distributed",
    "… and intake_pools": "import xarray, distributed, intake_pools",
    "… and what it opens catalogues with": (
        "import xarray, distributed, intake_pools; intake_pools.open_catalog; intake_pools.load_from_catalog"
    ),
}


def seconds(statement: str) -> float:
    code = f"from time import perf_counter as now; start = now(); {statement}; print(now() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def main() -> int:
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for statement in IMPORTS.values():  # leaves the files in the page cache, and their byte code on disk
        seconds(statement)
    for _ in range(ROUNDS):
        for name, statement in IMPORTS.items():
            taken[name].append(seconds(statement))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    alone, with_ours, _ = medians.values()

    table = Table(title=f"Importing, median of {ROUNDS} processes each")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("added", justify="right")
    for name, median in medians.items():
        table.add_row(name, f"{median:.3f}", f"{(median - alone) * 1000:+.0f} ms")
    Console().print(table)
    added = with_ours - alone
    kept = added <= LIMIT
    print(f"Importing intake_pools adds {added * 1000:.0f} ms; allowed are {LIMIT * 1000:.0f} ms.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
