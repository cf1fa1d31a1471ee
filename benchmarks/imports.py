"""What importing intake_pools adds to importing xarray and distributed: at most 150 ms.

Each process imports one after the other and times each, so that what is added is measured by itself, and not
as a small difference of two large numbers from different moments. Medians over several processes are shown.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

LIMIT = 0.150
ROUNDS = 9

# What the package imports only when it is used is shown as well, but is not part of the promise.
STEPS = {
    "import xarray, distributed": "import xarray, distributed",
    "import intake_pools": "import intake_pools",
    "first use of open_catalog": "intake_pools.open_catalog",
}


def seconds() -> list[float]:
    """Seconds for each step, in a fresh process."""
    code = ["from time import perf_counter as now", "times = [now()]"]
    for statement in STEPS.values():
        code += [statement, "times.append(now())"]
    code.append("print(*(after - before for before, after in zip(times, times[1:])))")
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, check=True, text=True)
    return [float(text) for text in done.stdout.split()]


def main() -> int:
    seconds()  # leaves the files in the page cache, and their byte code on disk
    medians = [statistics.median(times) for times in zip(*(seconds() for _ in range(ROUNDS)), strict=True)]

    table = Table(title=f"Importing, median of {ROUNDS} processes")
    table.add_column("what")
    table.add_column("ms", justify="right")
    for name, median in zip(STEPS, medians, strict=True):
        table.add_row(name, f"{median * 1000:.0f}")
    Console().print(table)
    added = medians[1]
    print(f"Importing intake_pools adds {added * 1000:.0f} ms; allowed are {LIMIT * 1000:.0f} ms.")
    return 0 if added <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
