"""netCDF4 and threads: Datasets that another process opened, read by many threads at once."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from intake_pools import load_from_catalog
from intake_pools.netcdf_lock import NETCDF4_PYTHON_LOCK, NetCDFLock

READ = """
import json, pickle, sys
from concurrent.futures import ThreadPoolExecutor
from intake_pools import stores

# Idle files are closed all the time, to meet those who read.
stores._IDLE = 0.02
datasets = [pickle.loads(open(path, "rb").read()) for path in sys.argv[1:]]
with ThreadPoolExecutor(4) as threads:
    for _ in range(10):
        sums = list(threads.map(lambda ds: float(ds["t"].sum().compute(scheduler="threads")), datasets * 2))
        assert sums[:2] == sums[2:]
print(json.dumps(sums[:2]))
"""


@pytest.mark.usefixtures("alone", "lazily")
def test_many_threads_read_what_other_processes_opened(tmp_path, forecast, write):
    """A crash of the reading process would be a failure here: xarray's lock is another one in each."""
    pickles = []
    for number in range(2):
        write(forecast.assign(t=forecast["t"] + number), tmp_path / f"{number}.nc")
        ds = load_from_catalog(tmp_path / f"{number}.nc", data_centre="here")
        pickles.append(tmp_path / f"{number}.pickle")
        pickles[-1].write_bytes(pickle.dumps(ds))
    done = subprocess.run([sys.executable, "-c", READ, *pickles], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    one, other = json.loads(done.stdout)
    assert other - one == pytest.approx(120, rel=1e-3)


def test_the_lock_is_reentrant_and_keeps_out_other_threads_and_xarray():
    lock = NetCDFLock()
    with ThreadPoolExecutor(1) as other, lock, lock:
        assert lock.locked()
        assert NETCDF4_PYTHON_LOCK.locked()
        assert not other.submit(lock.acquire, blocking=False).result()
    assert not lock.locked()
    assert not NETCDF4_PYTHON_LOCK.locked()
    with NETCDF4_PYTHON_LOCK:
        assert not lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)
    lock.release()
