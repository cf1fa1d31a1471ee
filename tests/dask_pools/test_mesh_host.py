"""One host's part of a mesh, as far as that can be told without an interface; the rest is in tests/lab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_pools.mesh import host
from dask_pools.mesh.host import HostMesh, remove_leftovers
from dask_pools.mesh.plan import Site, make_plan


def test_forwarding_that_was_off_is_switched_off_again_also_for_a_process_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    setting = tmp_path / "forwarding"
    setting.write_text("0\n")
    monkeypatch.setattr(host, "_FORWARDING", str(setting))
    monkeypatch.setattr(host, "run", lambda *_: "")
    router = make_plan([Site("client"), Site("ecmwf", "open")], 1).router("ecmwf")
    mesh = HostMesh(router, tmp_path / "meshes")
    mesh._claim()
    mesh._forward()
    assert setting.read_text() == "1"
    # As by the system when a process ends.
    assert mesh._held is not None
    os.close(mesh._held)
    assert remove_leftovers(tmp_path / "meshes") == [router.interface]
    assert setting.read_text() == "0"
    assert not (tmp_path / "meshes").exists()
