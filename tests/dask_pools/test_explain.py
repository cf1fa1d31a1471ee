"""explain(): what will cross, told before anything runs; and the budget that refuses too much of it."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pytest
import xarray as xr
from distributed import futures_of, wait

from dask_pools import TransferBudgetError, connect, explain, measure_traffic, pool
from dask_pools.pins import source_name
from dask_pools.placement.model import FREE, Model
from dask_pools.placement.plan import ANYWHERE, Plan
from dask_pools.placement.summary import lower_bound
from leftovers import eventually

MB = 1_000_000
BLOCK = 8 * MB // 8
"""Elements of one chunk of 1 MB times eight bytes."""


def loaded(label: str, site: str, chunks: int = 4, rows: int = 125) -> da.Array:
    """An array that looks as if a catalogue had opened it: `chunks` of 1 MB for 125 rows."""
    name = source_name(label, site, dask.base.tokenize(label, site, chunks, rows))
    with pool(site):
        return da.map_blocks(
            lambda block_info=None: np.ones(block_info[None]["chunk-shape"]),
            chunks=((rows,) * chunks, (1000,)),
            dtype="f8",
            meta=np.empty((0, 0)),
            name=name,
        )


@pytest.fixture
def a(client):
    connect(client)
    return loaded("temperature", "ecmwf")


@pytest.fixture
def b(client):
    return loaded("observed", "eumetsat")


def crossed(plan: Plan) -> dict[tuple[str, str], int]:
    return plan.pairs


def test_nothing_is_computed(client, a, b):
    ran = set()
    client.run_on_scheduler(lambda dask_scheduler: ran.update(dask_scheduler.tasks))
    explain(a - b)
    tasks = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    assert tasks == []


def test_what_crosses_is_told_by_pair_with_variable_and_operations(a, b):
    plan = explain((a - b).mean())
    assert crossed(plan) == {("eumetsat", "ecmwf"): 4 * MB} or crossed(plan) == {
        ("ecmwf", "eumetsat"): 4 * MB
    }
    (crossing,) = plan.crossings
    assert crossing.results == 4
    assert crossing.operation == "read"
    assert crossing.variables == ({"ecmwf": "temperature", "eumetsat": "observed"}[crossing.source],)
    assert plan.bound == pytest.approx(4 * MB)
    assert plan.exact


def test_why_a_step_is_where_it_is(a, b):
    mean, row = a.mean(0), b[0]
    plan = explain(mean - row)
    (sub,) = [step for step in plan.steps if step.operation == "sub"]
    (other,) = {"ecmwf", "eumetsat"} - {sub.pool}
    assert sub.would_cross == ((sub.pool, 8000), (other, 16000))
    assert plan.why("sub").splitlines()[1:] == [
        f"sub observed, temperature      1  {sub.pool}  7.81 kiB would cross, 15.62 kiB in {other}"
    ]
    assert len(plan.why().splitlines()) == 1 + len(plan.steps)
    assert all(step.reason == "the data are there" for step in plan.steps if step.kind == "read")
    with pytest.raises(ValueError, match=r"'add'.*There are: .*sub observed, temperature"):
        plan.why("add")
    with pool(other):
        moved = explain(mean - row)
    assert "pinned" in moved.why("sub")


@pytest.mark.parametrize(("reduce", "partials"), [("sum", 8), ("mean", 16), ("max", 8)])
def test_of_a_reduction_over_two_sites_only_partial_results_cross(client, a, b, reduce, partials):
    together = getattr(da.concatenate([a, b]), reduce)()
    # Those of at most four chunks are put together where they are made, or cross one by one.
    assert 0 < explain(together).crossed <= 4 * partials
    with measure_traffic() as measured:
        together.compute()
    assert measured.traffic.crossed < 100_000


def test_bytes_read_are_those_of_the_chunks_in_use_also_where_dask_fuses_the_reading(a, b):
    plan = explain((a[:250] + 1).sum(), b.max())
    read = {share.pool: share.read for share in plan.pools}
    assert read == {"ecmwf": 2 * MB, "eumetsat": 4 * MB}
    assert plan.crossed == 0
    assert "no placement moves less" in str(plan)


def test_bytes_to_the_client_are_those_of_the_results(a):
    assert explain(a + 1).to_client == 4 * MB
    assert explain((a + 1).sum(0)).to_client == 8000


def test_what_crosses_to_gather_a_result_is_told_with_the_way_around_it(a, b):
    plan = explain(da.concatenate([a + 1, b[:125] + 1]))
    assert crossed(plan) == {("eumetsat", "ecmwf"): MB}
    assert [step.bytes for step in plan.steps if step.output] == [5 * MB]
    assert plan.gathering == MB
    assert "futures_of" in str(plan)
    assert explain((a - b).sum()).gathering == 0


def test_fetching_the_parts_as_advised_moves_nothing_between_pools(client, a, b):
    x = da.concatenate([a + 1, b[:125] + 1])
    with measure_traffic(client) as measured:
        x = x.persist()
        parts = client.gather(list(x.dask.values()))
    assert sum(part.nbytes for part in parts) == 5 * MB
    assert measured.traffic.crossed == 0


def test_variables_of_a_dataset_are_explained_as_its_own_compute_treats_them(client, a, b):
    ds = xr.Dataset({"t": (("x", "y"), a), "o": (("x", "y"), b)})
    assert explain(ds + 1).crossed == 0
    # dask.compute(ds) puts both into one task.
    assert explain({"all": [ds.t.to_dataset(), ds["o"] - ds["t"]]}).crossed == 4 * MB


def test_persisted_results_count_where_they_are(client, a, b):
    held = (a + 1).persist()
    wait(held)
    plan = explain((held - b).sum())
    share = {share.pool: share for share in plan.pools}
    assert share["ecmwf"].held == 4 * MB
    assert share["ecmwf"].read == 0
    assert plan.crossed == 4 * MB


def test_several_collections_of_all_kinds_make_one_plan(client, a, b):
    bag = db.from_delayed([dask.delayed(list)(d) for d in b.to_delayed().ravel()])
    plan = explain([a.sum(), dask.delayed(np.sum)(b)], bag.count(), 3)
    assert {share.pool for share in plan.pools} >= {"ecmwf", "eumetsat"}
    assert plan.tasks > 8


def test_what_belongs_to_no_pool_is_told(client):
    plan = explain(da.ones(10, chunks=5).sum())
    assert [share.pool for share in plan.pools] == [ANYWHERE]
    assert "nothing to do with any pool" in str(plan)
    assert explain(np.ones(3)).pools == ()


def test_without_a_client_pins_alone_tell():
    with dask.config.set(scheduler="threads"):
        plan = explain(loaded("t", "ecmwf") - loaded("o", "eumetsat"))
    assert plan.crossed == 4 * MB


def test_frames_are_refused_with_what_to_do(a):
    dd = pytest.importorskip("dask.dataframe")
    with pytest.raises(TypeError, match="measure_traffic"):
        explain(dd.from_array(a[:, 0], chunksize=10))


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("difference", lambda a, b: (a - b).mean(0)),
        ("one grows", lambda a, b: a - b.mean(0)),
        ("concatenation", lambda a, b: da.concatenate([a, b]).max(0)),
        ("rechunk", lambda a, b: (a.rechunk((250, 500)) + b.rechunk((250, 500))).max(1)),
    ],
)
def test_what_is_predicted_is_what_crosses(client, a, b, name, program):
    x = program(a, b)
    plan = explain(x)
    with measure_traffic(client) as measured:
        x.compute()
    for pair, nbytes in plan.pairs.items():
        assert measured.traffic.pairs[pair] == pytest.approx(nbytes, rel=0.05, abs=2000), pair
    assert measured.traffic.crossed == pytest.approx(plan.crossed, rel=0.05, abs=2000)
    assert measured.traffic.to_client == pytest.approx(plan.to_client, rel=0.05, abs=2000)


def test_results_that_several_workers_of_a_pool_read_may_cross_more_than_once():
    from dask_pools.propagate import PlacingOptimizer

    x = loaded("t", "ecmwf", chunks=1)
    with pool("eumetsat"):
        reads = [(x + n).sum() for n in range(3)]
    total = dask.delayed(list)(reads)
    optimizer = PlacingOptimizer("delayed_optimize", True)
    one, two = (
        optimizer.plan(total.dask, list(total.__dask_keys__()), {"eumetsat": workers}, None)
        for workers in (1, 2)
    )
    assert one.crossed == two.crossed
    assert one.at_most == one.crossed
    assert two.at_most == 2 * two.crossed
    assert "Up to" in str(two)


def test_a_plan_travels_and_prints_as_tables(a, b):
    plan = explain(a - b)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan._repr_html_().count("<table>") == 2
    assert "read observed" in plan._repr_html_() or "read temperature" in plan._repr_html_()
    assert "Crossing between pools: 3.81 MiB (no placement moves less)." in str(plan)


# The budget.


def test_a_computation_above_the_budget_is_refused_before_any_of_its_tasks_runs(client, a, b, tmp_path):
    def leave_a_trace(block):
        (tmp_path / "ran").touch()
        return block

    x = (a.map_blocks(leave_a_trace, meta=np.empty((0, 0))) - b).sum()
    with (
        dask.config.set({"pools.transfer-budget": "3 MB"}),
        pytest.raises(TransferBudgetError, match=r"3\.81 MiB between pools, and the budget is 2\.86 MiB"),
    ):
        x.compute()
    assert not (tmp_path / "ran").exists()
    with dask.config.set({"pools.transfer-budget": "5 MB"}):
        assert x.compute() == 0
    assert (tmp_path / "ran").exists()


def test_the_budget_is_that_of_the_client_that_computes(client, a, b):
    # Read where the graph is sent from, not where it is placed.
    with dask.config.set({"pools.transfer-budget": "1 kB"}):
        refused = client.compute((a * b).sum())
    allowed = client.compute((a + b).sum())
    assert allowed.result() == 2 * 500 * 1000
    with pytest.raises(TransferBudgetError, match="The most"):
        refused.result()
    # The error's traceback holds on to this frame.
    allowed.release()
    refused.release()


def test_persisting_is_held_to_the_budget_too(client, a, b):
    with dask.config.set({"pools.transfer-budget": 0}):
        refused = (a * 2 - b).persist()
        with pytest.raises(TransferBudgetError):
            futures_of(refused)[0].result()
    with dask.config.set({"pools.transfer-budget": 0}):
        assert a.sum().compute() == 500 * 1000


def frame(x: da.Array):
    return dd.from_dask_array(x[:, :2].rechunk((-1, 2)), columns=["p", "q"])


def test_results_of_unknown_size_are_told_and_refused_under_a_budget(client, a, b):
    # Inside Delayed nothing says any more how large an array is.
    with pool("ecmwf"):
        made = dask.delayed(np.ones)(1000)
    with pool("eumetsat"):
        total = dask.delayed(np.sum)(made)
    plan = explain(total, budget=None)
    assert (plan.crossed, plan.unknown) == (1, 1)
    assert "1 of the results that cross are of unknown size" in str(plan)
    assert explain(a - b).unknown == 0
    assert total.compute() == 1000
    with dask.config.set({"pools.transfer-budget": "1 GB"}):
        assert (a - b).sum().compute() == 0
        with pytest.raises(TransferBudgetError, match="cannot be told beforehand"):
            total.compute()


UNPLACED = {
    "optimize_graph=False": lambda client, x, y: (x - y).sum().compute(optimize_graph=False),
    "client.get": lambda client, x, y: client.get(dict((x - y).dask), (x - y).__dask_keys__()[0][0]),
    "frames": lambda client, x, y: (frame(x).p + frame(y).q).sum().compute(),
}


@pytest.mark.parametrize("way", UNPLACED.values(), ids=UNPLACED)
def test_what_is_not_placed_is_refused_if_it_crosses_under_a_budget(pools, client, a, b, way, tmp_path):
    def leave_a_trace(block):
        (tmp_path / "ran").touch()
        return block

    x = a.map_blocks(leave_a_trace, meta=np.empty((0, 0)))
    with dask.config.set({"pools.transfer-budget": "1 GB"}):
        with pytest.raises(TransferBudgetError, match="cannot be told beforehand"):
            way(client, x, b)
        assert not (tmp_path / "ran").exists()
        # In one pool nothing crosses.
        way(client, x, x)
    assert (tmp_path / "ran").exists()
    # Dask gives the old error to whoever asks for the same again before it is forgotten.
    assert eventually(lambda: all(t.state != "erred" for t in pools.scheduler.tasks.values()), 5)
    way(client, x, b)


def test_what_is_in_memory_counts_with_its_size_in_what_is_not_placed(client, a):
    (chunk,) = futures_of(a[:125].persist(optimize_graph=False))
    wait(chunk)

    def mean_elsewhere():
        with pool("eumetsat"):
            return client.submit(np.mean, chunk, pure=False)

    with dask.config.set({"pools.transfer-budget": "1 kB"}):
        refused = mean_elsewhere()
        with pytest.raises(
            TransferBudgetError, match=r"0\.95 MiB between pools, and the budget is 0\.98 kiB"
        ):
            refused.result()
    with dask.config.set({"pools.transfer-budget": "2 MB"}):
        assert mean_elsewhere().result() == 1
    refused.release()
    chunk.release()


def test_explain_refuses_what_is_above_a_budget_that_it_is_given(a, b):
    with pytest.raises(TransferBudgetError) as caught:
        explain(a - b, budget="1 MB")
    assert (caught.value.crossed, caught.value.budget) == (4 * MB, MB)
    assert pickle.loads(pickle.dumps(caught.value)).largest == caught.value.largest
    assert explain(a - b, budget="1 GB").crossed == 4 * MB
    with dask.config.set({"pools.transfer-budget": "1 MB"}):
        plan = explain(a - b)
    assert plan.over_budget
    assert "raises TransferBudgetError" in str(plan)


@pytest.mark.parametrize("budget", ["much", -1, [1]])
def test_a_budget_that_cannot_be_understood_says_so(a, budget):
    with pytest.raises(ValueError, match="500 MB"):
        explain(a, budget=budget)


# The least that must cross.


def test_the_bound_is_the_least_cut_where_there_are_two_pools():
    # 0 and 1 are pinned apart; 2 joins them and is read by 3, in pool 0, and 4, in pool 1.
    model = Model(
        pools=["a", "b"],
        inputs=[[], [], [0, 1], [2], [2, 1]],
        nbytes=[10.0, 3.0, 5.0, 1.0, 1.0],
        pinned=[0, 1, FREE, 0, 1],
    )
    assert lower_bound(model) == (pytest.approx(8.0), True)


def test_a_result_that_a_pool_reads_twice_counts_once_in_the_bound():
    model = Model(["a", "b"], [[], [0], [0]], [10.0, 1.0, 1.0], [0, 1, 1])
    assert lower_bound(model) == (pytest.approx(10.0), True)


def test_the_bound_holds_for_three_pools():
    model = Model(["a", "b", "c"], [[], [], [], [0, 1, 2]], [4.0, 4.0, 4.0, 1.0], [0, 1, 2, FREE])
    bound, exact = lower_bound(model)
    assert 0 < bound <= 8.0
    assert not exact
    assert lower_bound(Model(["a"], [[], [0]], [4.0, 1.0], [0, FREE])) == (0.0, True)
