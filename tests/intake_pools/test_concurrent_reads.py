"""netCDF4 and threads: two Datasets read in one process that were opened by others."""

import json
import subprocess
import sys

import pytest

READ = """
import json, pickle, sys
from concurrent.futures import ThreadPoolExecutor
import dask
from intake_pools import stores

paths = sys.argv[1:]
if paths[0] == "open":
    dask.config.set({"pools.eager-size": 0})
    from intake_pools import load_from_catalog

    ds = load_from_catalog(paths[1], data_centre="here")
    sys.stdout.buffer.write(pickle.dumps(ds))
    sys.exit()

# Idle files are closed all the time, to meet those who read.
stores._IDLE = 0.005
datasets = [pickle.loads(open(path, "rb").read()) for path in paths]
with ThreadPoolExecutor(4) as threads:
    for _ in range(15):
        sums = list(threads.map(lambda ds: float(ds["t"].sum().compute(scheduler="threads")), datasets * 2))
        assert sums[:2] == sums[2:]
print(json.dumps(sums[:2]))
"""


def test_datasets_opened_by_two_processes_are_read_by_many_threads_of_a_third(tmp_path, forecast, write):
    """A crash of the process would be a failure here: xarray's lock is another one in each process."""
    script = tmp_path / "read.py"
    script.write_text(READ)
    pickles = []
    for number in range(2):
        path = tmp_path / f"{number}.nc"
        write(forecast.assign(t=forecast["t"] + number), path)
        done = subprocess.run([sys.executable, script, "open", path], capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr.decode()
        pickles.append(tmp_path / f"{number}.pickle")
        pickles[-1].write_bytes(done.stdout)
    done = subprocess.run([sys.executable, script, *pickles], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    one, other = json.loads(done.stdout)
    assert other - one == pytest.approx(120, rel=1e-3)
