"""The `workers:` section of a data-centres file: what it may say, and what a mistake in it is told as."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import pytest

from dask_pools import data_centres, workers
from dask_pools.cluster import PoolCluster, PoolSpec, pool_specs
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.local import LocalLauncher
from dask_pools.errors import DataCentresError
from dask_pools.workers import LauncherOptions, Workers

FULL = """\
data_centres:
  ecmwf:
    prefixes: [/data/ecmwf/]
    workers:
      launcher: local
      threads: 4
      memory: 16 GiB
      directory: /data
      env: {OMP_NUM_THREADS: "1"}
      resources: {GPU: 2}
      minimum: 1
      maximum: 8
      provision: ask
      askers: [alice, bob]
      max_hours: 2.5
      timeout: 5 min
      idle: 90 s
      local: {scratch: /scratch, prefix: [nice, -n, "19"]}
  eumetsat:
    workers: {launcher: local}
  elsewhere: {}
"""


def section(text: str) -> data_centres.DataCentres:
    return data_centres.parse(f"data_centres:\n  a:\n    workers:\n      {text}", "f.yaml")


def test_a_data_centre_that_says_how_to_get_workers_becomes_a_pool():
    specs = pool_specs(data_centres.parse(FULL, "f.yaml"))
    assert specs == {
        "ecmwf": PoolSpec(
            launcher=LocalLauncher("/scratch", ("nice", "-n", "19"), timeout=300),
            worker=WorkerShape(4, 16 * 2**30, "/data", {"OMP_NUM_THREADS": "1"}, {"GPU": 2}),
            workers=1,
            minimum=1,
            maximum=8,
            provision="ask",
            askers=("alice", "bob"),
            max_hours=2.5,
            timeout=300,
            idle=90,
        ),
        "eumetsat": PoolSpec(launcher=LocalLauncher(), workers=0),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("launcher: lcoal", r"workers.launcher: there is no launcher 'lcoal'. Did you mean 'local'\?"),
        ("threads: 2", r"line 3: key 'data_centres.a.workers.launcher' is missing"),
        ("launcher: 3", r"workers.launcher should be a text"),
        ("{launcher: local, thread: 2}", r"unknown key .*workers.thread'. Did you mean 'threads'\?"),
        ("{launcher: local, slurm: {}}", r"unknown key .*workers.slurm'.* Allowed here: launcher, threads,"),
        ("launcher: local\n      local:\n        scrach: /", r"line 6: unknown key .*local.scrach'. Did you"),
        ("{launcher: local, local: {prefix: nice}}", r"workers.local.prefix should be a list, not 'nice'"),
        ("launcher: local\n      threads: 0", r"line 5: .*threads should be greater than or equal to 1, not"),
        ("{launcher: local, threads: '2'}", r"workers.threads should be a whole number, not '2'"),
        ("{launcher: local, memory: 4 Gibs}", r"workers.memory: '4 Gibs' is no size; write one as in 16 GiB"),
        ("{launcher: local, memory: 16}", r"workers.memory: 16 bytes are too few"),
        ("{launcher: local, env: {A: 1}}", r"workers.env.A should be a text \(in quotes"),
        ("{launcher: local, env: {'A=B': x}}", r"workers.env.A=B: no environment variable can be called so"),
        ("{launcher: local, resources: {pool-b: 1}}", r"resources.pool-b: .* are those of pools; leave it"),
        ("{launcher: local, provision: no}", r"provision should be 'auto', 'ask' or 'never', not False"),
        ("{launcher: local, askers: alice}", r"workers.askers should be a list, not 'alice'"),
        ("{launcher: local, timeout: 2 moons}", r"workers.timeout: '2 moons' is no time; write one as in 90"),
        ("{launcher: local, idle: -1}", r"workers.idle should be greater than 0, not -1"),
        ("{launcher: local, max_hours: .inf}", r"workers.max_hours should be a finite number"),
        ("{launcher: local, minimum: 3, maximum: 2}", r"minimum: 3 is more than the maximum of 2"),
        ("[local]", r"line 3: data_centres.a.workers should be a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_key_and_what_is_allowed(text, message):
    with pytest.raises(DataCentresError, match=rf"^f.yaml, line \d: (?s:.*){message}|^f.yaml, {message}"):
        section(text)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(DataCentresError) as caught:
        section("{launcher: local, thread: 2, memory: x}\n  b: {prefixs: []}")
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_says_nothing_of_workers_makes_no_cluster(tmp_path):
    path = tmp_path / "data-centres.yaml"
    path.write_text("data_centres: {a: {prefixes: [/a]}}")
    with pytest.raises(
        DataCentresError, match=r"data-centres.yaml does not say how .* workers: \{launcher: local\}"
    ):
        PoolCluster(path)


def test_a_section_is_merged_with_rules_of_other_files_and_with_itself():
    rules = {"data_centres": {"a": {"prefixes": ["/a"]}}}
    said = {"data_centres": {"a": {"workers": {"launcher": "local", "threads": 2}}}}
    known = data_centres.load([rules, said, rules, said])
    assert known.data_centres["a"].workers.threads == 2
    assert known.matches("/a/b")[0].data_centre == "a"


def test_two_files_that_describe_the_workers_differently_are_an_error():
    files = [{"data_centres": {"a": {"workers": {"launcher": "local", "threads": n}}}} for n in (1, 2)]
    with pytest.raises(DataCentresError, match="workers of a are described differently in another"):
        data_centres.load(files)


def test_what_is_said_of_workers_does_not_travel_with_the_rules():
    known = section("{launcher: local, env: {TOKEN: geheim}}")
    assert known.data_centres["a"].workers.env == {"TOKEN": "geheim"}
    assert b"geheim" not in pickle.dumps(known)
    assert pickle.loads(pickle.dumps(known)).data_centres["a"].workers is None


class Balloon(LauncherOptions):
    """A launcher of somebody else's, which has no shelter from rain."""

    gas: str

    def cannot(self, workers: Workers) -> Mapping[str, str]:
        return {"memory": "a balloon carries none; leave it out"} if workers.memory else {}


class _EntryPoint:
    value = "balloons:Balloon"

    def load(self):
        return Balloon


class _EntryPoints(dict):
    names = ("balloon", "local")


@pytest.fixture
def balloons(monkeypatch):
    def entry_points(group, name=None):
        assert group == "dask_pools.launchers"
        return _EntryPoints(balloon=_EntryPoint()) if name is None else [_EntryPoint()] * (name == "balloon")

    monkeypatch.setattr(workers, "entry_points", entry_points)
    workers._model.cache_clear()
    yield
    workers._model.cache_clear()


def test_another_package_can_provide_a_launcher_with_options_of_its_own(balloons):
    said = section("{launcher: balloon, balloon: {gas: helium}}").data_centres["a"].workers
    assert said.options == Balloon(gas="helium")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("launcher: balloon", r"key 'data_centres.a.workers.balloon' is missing"),
        ("{launcher: balloon, balloon: {}}", r"key 'data_centres.a.workers.balloon.gas' is missing"),
        (
            "launcher: balloon\n      balloon: {gas: helium}\n      memory: 1 GB",
            "line 6: data_centres.a.workers.memory: a balloon carries none; leave it out",
        ),
    ],
)
def test_what_a_launcher_cannot_do_is_said_when_the_file_is_read(balloons, text, message):
    with pytest.raises(DataCentresError, match=message):
        section(text)


def test_a_launcher_that_cannot_be_loaded_is_named_with_the_reason(balloons, monkeypatch):
    def load(self):
        raise ImportError("no module named gas")

    monkeypatch.setattr(_EntryPoint, "load", load)
    with pytest.raises(DataCentresError, match=r"'balloon' \(balloons:Balloon\) cannot be loaded: .* gas"):
        section("launcher: balloon")
