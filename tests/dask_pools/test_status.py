"""How the pools of a running cluster are shown: on the command line, and in a notebook."""

from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster, Security
from scripted import Scripted, cluster_of

from dask_pools import cli
from dask_pools.cluster import LocalPools, PoolCluster, PoolSpec, up
from dask_pools.cluster.scheduler_process import scheduler_spec
from dask_pools.sites.networks import TlsNetwork
from leftovers import eventually


def run(*arguments: str) -> str:
    return str(CliRunner().invoke(cli.pools, ["status", *arguments]).output)


def rows(address: str) -> dict[str, str]:
    """What is shown, by the first word of each line."""
    return {line.split()[0]: line for line in run(address).splitlines() if line.strip()}


def test_status_tells_what_each_pool_has_and_does(pools: LocalPools, client: Client) -> None:
    held = client.submit(bytes, 10_000, resources={"pool-ecmwf": 0})
    held.result()
    # What the cluster says of itself comes twice a second.
    wanted = ["1", "1", "0", "1", "0", "0", "0", "s", "9.77", "kiB"]
    assert eventually(lambda: rows(pools.scheduler_address)["ecmwf"].split()[1:] == wanted)
    assert rows(pools.scheduler_address)["eumetsat"].split()[1:5] == ["1", "1", "0", "1"]


def test_status_tells_what_failed_and_what_is_awaited() -> None:
    pools = {
        "full": PoolSpec(Scripted("refuse no quota left"), workers=0),
        "slow": PoolSpec(Scripted("hang", "hang"), workers=0),
    }
    with cluster_of(**pools) as cluster:
        cluster.scale(full=1, slow=2)
        assert eventually(lambda: "no quota left" in run(cluster.scheduler_address))
        shown = rows(cluster.scheduler_address)
        assert re.search(r"failed \d+ s ago", shown["full"])
        assert "full: worker full-0: OSError: no quota left" in run(cluster.scheduler_address)
        assert eventually(
            lambda: rows(cluster.scheduler_address)["slow"].split()[1:5] == ["2", "2", "2", "0"]
        )


def test_status_of_what_has_no_pools_says_so() -> None:
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        assert "the scheduler there has no pools" in run(cluster.scheduler_address)
    assert "No answer from tcp://127.0.0.1:1" in run("tcp://127.0.0.1:1")
    assert "'2 moons' is no time" in run("tcp://127.0.0.1:1", "--timeout", "2 moons")


def test_status_needs_no_address_where_one_cluster_is_up_nor_a_certificate_where_it_is_encrypted(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    network = TlsNetwork("127.0.0.1")
    scheduler = scheduler_spec("here")
    scheduler["options"] |= network.scheduler()
    pools = {"ecmwf": PoolSpec(Scripted(), workers=0)}
    with PoolCluster(pools, scheduler=scheduler, security=network.security) as cluster:
        address = cluster.scheduler_address
        assert "No cluster is up here" in run()
        assert f"The scheduler at {address} speaks TLS, and this machine has no certificate" in run(address)
        with up._reachable(cluster) as listening:
            serving = threading.Thread(target=up._serve, args=(cluster, listening))
            serving.start()
            for arguments in ([], [address]):
                assert re.search(r"^ *ecmwf +0 +0 +0 +0 ", run(*arguments), re.MULTILINE)
            up._ask({"do": "down"}, None)
            serving.join()


def test_status_of_a_scheduler_with_tls_takes_the_files_that_dask_is_configured_with(tmp_path: Path) -> None:
    made = Security.temporary()
    settings: dict[str, object] = {}
    for part in ("ca_file", "client_cert", "client_key"):
        (tmp_path / part).write_text(getattr(made, f"tls_{part}"))
        settings[f"distributed.comm.tls.{part.replace('_', '-' if part == 'ca_file' else '.')}"] = str(
            tmp_path / part
        )
    options = {"host": "127.0.0.1", "port": 0, "protocol": "tls", "security": made, "dashboard": False}
    with (
        PoolCluster(
            {"ecmwf": PoolSpec(Scripted(), workers=0)},
            scheduler={"cls": "distributed.Scheduler", "options": options},
            security=made,
        ) as cluster,
        dask.config.set(settings),
    ):
        assert rows(cluster.scheduler_address)["ecmwf"].split()[1:5] == ["0"] * 4


def test_the_widget_scales_and_adapts_each_pool() -> None:
    with cluster_of(ecmwf=PoolSpec(Scripted(), workers=0, maximum=3)) as cluster:
        widget = cluster._widget()
        assert cluster._widget() is widget
        status, scaling = widget.children
        row, said = scaling.children
        name, count, scale, minimum, maximum, adapt = row.children
        assert name.value == "ecmwf"
        assert "Pool ecmwf:" in status.value
        count.value = 2
        scale.click()
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 2)
        count.value = 9
        scale.click()
        assert "maximum of 3" in said.value
        minimum.value, maximum.value = 1, 2
        adapt.click()
        assert "adapts from 1 to 2" in status.value
        assert said.value == ""
