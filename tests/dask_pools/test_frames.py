"""Pins on dask.dataframe: what reads a frame runs in its pool, and everything else is as Dask makes it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask._collections import new_collection
from dask._dispatch import get_collection_type
from dask._task_spec import GraphNode, convert_legacy_graph
from dask.dataframe.dask_expr._expr import Blockwise, Fused, is_valid_blockwise_op
from dask.dataframe.dask_expr.io import FromMap, FusedIO
from distributed import Client, get_worker

from dask_pools import MixedPoolsError, get_pool, pool
from dask_pools.cluster import LocalPools
from dask_pools.frame_expressions import Meeting, PinnedSource, Separated, arranged, pinned_class
from dask_pools.pins import pools_of_task

PARTS = range(4)


def part(i: int, offset: int = 0, columns: list[str] | None = None) -> pd.DataFrame:
    """One partition."""
    frame = pd.DataFrame(
        {"k": [i % 3, (i + 1) % 3, i % 2], "x": [i, i + 1, i + 2], "y": [1.0 + offset, 2.0, 3.0 * i]},
        index=[3 * i, 3 * i + 1, 3 * i + 2],
    )
    return frame if columns is None else frame[columns]


def whole(offset: int = 0) -> pd.DataFrame:
    """All partitions, as pandas has them."""
    return pd.concat([part(i, offset) for i in PARTS])


def part_of(site: str, i: int, offset: int = 0, columns: list[str] | None = None) -> pd.DataFrame:
    """One partition of what only workers of one pool can read."""
    offered = get_worker().state.total_resources
    assert f"pool-{site}" in offered, f"a partition of {site} is read on a worker that offers {offered}"
    return part(i, offset, columns)


def frame(offset: int = 0) -> Any:
    return dd.from_map(part, PARTS, offset=offset, meta=part(0))


def pinned_frame(site: str, offset: int = 0) -> Any:
    with pool(site):
        return frame(offset)


def guarded_frame(site: str, offset: int = 0) -> Any:
    with pool(site):
        return dd.from_map(part_of, [site] * len(PARTS), PARTS, offset=offset, meta=part(0))


def tasks_of(collection: Any) -> dict[Any, GraphNode]:
    return convert_legacy_graph(dict(collection.__dask_graph__()))


def sources_of(collection: Any) -> list[Any]:
    expr = collection.expr
    while isinstance(expr, Fused):
        expr = expr.exprs[0]
    sources = expr.find_operations(PinnedSource)
    return [source.operand("_expr") if isinstance(source, FusedIO) else source for source in sources]


def assert_same(result: Any, expected: Any) -> None:
    """Equal, apart from the order of the rows, which shuffles do not keep."""
    if isinstance(expected, pd.DataFrame):
        by = list(expected.columns)
        result, expected = (
            values.sort_values(by).reset_index(drop=True).astype(float) for values in (result, expected)
        )
        pd.testing.assert_frame_equal(result, expected, check_names=False)
    elif isinstance(expected, pd.Series):
        result, expected = (
            pd.Series(np.sort(values.to_numpy().astype(float))) for values in (result, expected)
        )
        pd.testing.assert_series_equal(result, expected)
    else:
        np.testing.assert_allclose(result, expected)


# ------------------------------------------------------------------------------------------- on a cluster

ONE_POOL: dict[str, tuple[Callable[[Any], Any], Callable[[pd.DataFrame], Any]]] = {
    "compute": (lambda a: a.compute(), lambda a: a),
    "reduction": (lambda a: a.x.sum().compute(), lambda a: a.x.sum()),
    "persist": (lambda a: (a.persist().x + 1).compute(), lambda a: a.x + 1),
    "optimize": (lambda a: (a.x + 1).optimize().compute(), lambda a: a.x + 1),
    "groupby": (lambda a: a.groupby("k").x.sum().compute(), lambda a: a.groupby("k").x.sum()),
    "shuffle": (lambda a: a.shuffle("k").compute(), lambda a: a),
    "set_index": (lambda a: a.set_index("x").y.compute(), lambda a: a.y),
    "to_delayed": (lambda a: pd.concat(dask.compute(*a.to_delayed())), lambda a: a),
    "delayed(f)(frame)": (lambda a: dask.delayed(len)(a).compute(), len),
    "values": (lambda a: a.x.values.sum().compute(), lambda a: a.x.sum()),
    "head": (lambda a: a.head(2), lambda a: a.head(2)),
    "len": (len, len),
}

TWO_POOLS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[pd.DataFrame, pd.DataFrame], Any]]] = {
    "compute": (lambda a, b: (a + b).compute(), lambda a, b: a + b),
    "optimize": (lambda a, b: ((a + 1).x + b.x).optimize().compute(), lambda a, b: a.x + 1 + b.x),
    "persist": (lambda a, b: (a + b).persist().compute(), lambda a, b: a + b),
    "persisted parts": (lambda a, b: (a.persist() + b.persist()).compute(), lambda a, b: a + b),
    "dask.compute": (lambda a, b: dask.compute(a.x.sum(), b.y.sum()), lambda a, b: (a.x.sum(), b.y.sum())),
    "with an array": (
        lambda a, b: dask.compute((a.x + b.x).sum(), da.ones(6, chunks=3).sum()),
        lambda a, b: ((a.x + b.x).sum(), 6.0),
    ),
    "to array": (lambda a, b: (a.x + b.y).values.sum().compute(), lambda a, b: (a.x + b.y).sum()),
    "to_delayed": (lambda a, b: pd.concat(dask.compute(*(a + b).to_delayed())), lambda a, b: a + b),
    "rows": (lambda a, b: dd.concat([a, b]).compute(), lambda a, b: pd.concat([a, b])),
    "columns": (
        lambda a, b: dd.concat([a.x, b.y], axis=1, ignore_unknown_divisions=True).compute(),
        lambda a, b: pd.concat([a.x, b.y], axis=1),
    ),
    "groupby": (
        lambda a, b: dd.concat([a, b]).groupby("k").y.mean().compute(),
        lambda a, b: pd.concat([a, b]).groupby("k").y.mean(),
    ),
    "scalar": (lambda a, b: a[a.x > b.x.mean()].compute(), lambda a, b: a[a.x > b.x.mean()]),
    "map_partitions": (
        lambda a, b: a.map_partitions(lambda p, q: p * q, b - 1).y.sum().compute(),
        lambda a, b: (a * (b - 1)).y.sum(),
    ),
}


@pytest.mark.parametrize("way", ONE_POOL)
def test_loading_tasks_run_in_their_pool_alone(client: Client, way: str) -> None:
    lazily, eagerly = ONE_POOL[way]
    assert_same(lazily(guarded_frame("ecmwf")), eagerly(whole()))


@pytest.mark.filterwarnings("ignore:Computing mixed collections")
@pytest.mark.parametrize("way", TWO_POOLS)
def test_frames_of_two_pools_are_each_read_in_their_own(client: Client, way: str) -> None:
    lazily, eagerly = TWO_POOLS[way]
    a, b = guarded_frame("ecmwf"), guarded_frame("eumetsat", offset=5)
    assert_same(lazily(a, b), eagerly(whole(), whole(offset=5)))


@pytest.mark.parametrize("method", ["tasks", "p2p"])
@pytest.mark.parametrize(
    "on", [{"on": "x"}, {"left_index": True, "right_index": True}], ids=["column", "index"]
)
def test_frames_of_two_pools_can_be_merged(client: Client, method: str, on: dict[str, Any]) -> None:
    a, b = guarded_frame("ecmwf"), guarded_frame("eumetsat", offset=5)
    with dask.config.set({"dataframe.shuffle.method": method}):
        assert_same(a.merge(b, **on).compute(), whole().merge(whole(offset=5), **on))


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_frames_of_two_pools_can_be_shuffled_together(client: Client, method: str) -> None:
    a, b = guarded_frame("ecmwf"), guarded_frame("eumetsat", offset=5)
    with dask.config.set({"dataframe.shuffle.method": method}):
        assert_same(dd.concat([a, b]).shuffle("k").compute(), pd.concat([whole(), whole(offset=5)]))


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_frame_of_pinned_delayed_objects_keeps_their_pins(client: Client, where: str) -> None:
    with pool("ecmwf"):
        parts = [dask.delayed(part_of)("ecmwf", i) for i in PARTS]
        inside = dd.from_delayed(parts, meta=part(0))
    lazily = inside if where == "inside" else dd.from_delayed(parts, meta=part(0))
    assert get_pool(lazily) == "ecmwf"
    assert_same((lazily.x + guarded_frame("eumetsat").x).compute(), whole().x * 2)


def test_the_keys_say_where_delayed_objects_are_read() -> None:
    """They alone reach a scheduler in another process, which makes the tasks by its own configuration."""
    with pool("ecmwf"):
        parts = [dask.delayed(part)(i) for i in PARTS]
    for delayeds in (parts, [dask.delayed(pd.DataFrame.head)(given, 1) for given in parts]):
        lazily = dd.from_delayed(delayeds, meta=part(0))
        with dask.config.set(delayed_optimize=None):
            named = [pools_of_task(key, task) for key, task in tasks_of(lazily).items()]
        assert named.count({"ecmwf"}) == len(PARTS)


def test_a_pinned_delayed_object_among_the_arguments_keeps_its_pin(client: Client) -> None:
    with pool("ecmwf"):
        other = dask.delayed(part_of)("ecmwf", 1)
    lazily = guarded_frame("eumetsat").x.map_partitions(lambda x, o: x + o.x.sum(), other, meta=("x", "i8"))
    assert_same(lazily.compute(), whole().x + part(1).x.sum())


def test_equal_sources_in_two_pools_are_two_sources(client: Client) -> None:
    """The same path in two data centres is the case that stock names get wrong: the difference would be 0."""

    def read(i: int) -> pd.DataFrame:
        (offered,) = get_worker().state.total_resources
        return pd.DataFrame({"x": [i + 1000 * (offered == "pool-ecmwf")]})

    def opened(site: str) -> Any:
        with pool(site):
            return dd.from_map(read, PARTS, meta={"x": "i8"})

    a, b = opened("ecmwf"), opened("eumetsat")
    assert not {*tasks_of(a)} & {*tasks_of(b)}
    assert (a + 1)._name != (b + 1)._name
    assert (a.x - b.x).sum().compute() == 1000 * len(PARTS)


def test_the_pool_of_the_block_around_a_computation_does_not_replace_that_of_the_data(client: Client) -> None:
    a = guarded_frame("ecmwf")
    with pool("eumetsat"):
        assert a.x.sum().compute() == whole().x.sum()
        persisted = a.persist()
    assert_same(persisted.compute(), whole())


def test_pins_of_frames_hold_with_the_scheduler_in_another_process() -> None:
    with LocalPools({"ecmwf": 1, "eumetsat": 1}, scheduler="process") as cluster, cluster.get_client():
        with pool("ecmwf"):
            parts = [dask.delayed(part_of)("ecmwf", i) for i in PARTS]
        a, b = guarded_frame("ecmwf"), guarded_frame("eumetsat", offset=5)
        c = dd.from_delayed(parts, meta=part(0))
        assert_same((a + b).compute(), whole() + whole(5))
        assert_same((a.x + b.x).persist().compute(), whole().x + whole(5).x)
        assert_same((c.x + b.x).compute(), whole().x + whole(5).x)
        assert_same(c.merge(b, on="x").compute(), whole().merge(whole(5), on="x"))


# ----------------------------------------------------------------------------------- what Dask makes of it


def made_inside(make: Callable[[], Any], site: str | None = "ecmwf") -> Any:
    with pool(site):
        return make()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    whole().to_csv(tmp_path / "frame.csv", index=False)
    frame().to_parquet(tmp_path / "frame.parquet", compute=False).compute(scheduler="synchronous")
    return tmp_path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "from_map": lambda files: frame(),
    "from_pandas": lambda files: dd.from_pandas(whole(), npartitions=3),
    "from_pandas, a series": lambda files: dd.from_pandas(whole().x, npartitions=3),
    "from_dict": lambda files: dd.from_dict({"x": [1, 2, 3]}, npartitions=2),
    "from_array": lambda files: dd.from_array(np.arange(10), chunksize=4),
    "from_dask_array": lambda files: dd.from_dask_array(da.ones((6, 2), chunks=(3, 2)), columns=["x", "y"]),
    "from_delayed": lambda files: dd.from_delayed([dask.delayed(part)(i) for i in PARTS], meta=part(0)),
    "read_parquet": lambda files: dd.read_parquet(files / "frame.parquet"),
    "read_parquet with arrow": lambda files: dd.read_parquet(files / "frame.parquet", filesystem="arrow"),
    "read_csv": lambda files: dd.read_csv(files / "frame.csv"),
    "timeseries": lambda files: dask.datasets.timeseries(end="2000-01-03", freq="1h", seed=1),
    "a bag": lambda files: db.from_sequence([{"x": 1}, {"x": 2}], npartitions=2).to_dataframe(),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
def test_whatever_makes_a_frame_is_pinned(files: Path, source: str, fuse: bool) -> None:
    make = SOURCES[source]
    pinned = made_inside(lambda: make(files))
    optimized = pinned.optimize(fuse=fuse)
    assert get_pool(pinned) == get_pool(optimized) == "ecmwf"
    for key, task in tasks_of(optimized).items():
        assert task.dependencies or pools_of_task(key, task) == {"ecmwf"}, key
    expected = make(files).compute(scheduler="synchronous")
    result = pinned.compute(scheduler="synchronous")
    (pd.testing.assert_frame_equal if pinned.ndim == 2 else pd.testing.assert_series_equal)(result, expected)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda a: a,
    "arithmetic": lambda a: (a + 1) * 2,
    "a column": lambda a: a.x + 1,
    "a filter": lambda a: a[a.x > 1].y,
    "assign": lambda a: a.assign(z=a.x + a.y),
    "a reduction": lambda a: a.y.mean(),
    "groupby": lambda a: a.groupby("k").x.sum(),
    "itself": lambda a: a.x + (a + 1).y,
    "less its mean": lambda a: a.x - a.x.mean(),
    "shuffle": lambda a: a.shuffle("k", shuffle_method="tasks"),
    "merge": lambda a: a.merge(a, on="x", shuffle_method="tasks"),
    "fewer partitions": lambda a: a.repartition(npartitions=2).x,
    "one partition": lambda a: a.partitions[1] + 1,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
def test_a_pinned_frame_has_as_many_tasks_as_an_unpinned_one(operation: str, fuse: bool) -> None:
    apply = OPERATIONS[operation]
    pinned, plain = (apply(a).optimize(fuse=fuse) for a in (pinned_frame("ecmwf"), frame()))
    assert len(tasks_of(pinned)) == len(tasks_of(plain))
    assert get_pool(pinned) == "ecmwf"


MEETINGS: dict[str, Callable[[Any, Any], Any]] = {
    "arithmetic": lambda a, b: a + b,
    "chains": lambda a, b: ((a + 1) * 2).x + b.y,
    "rows": lambda a, b: dd.concat([a, b]),
    "columns": lambda a, b: dd.concat([a.x, b.y], axis=1, ignore_unknown_divisions=True),
    "a function": lambda a, b: a[a.x > 1].map_partitions(lambda p, q: p + q, b - 1).y + 3,
    "one again": lambda a, b: a.map_partitions(lambda p, q: p + q, b) - a,
    "what both read": lambda a, b: dd.concat([(a.x + b.x).sum().to_series(), a.x.sum().to_series()]),
    "reductions": lambda a, b: a.x.sum() + b.x.sum(),
    "merge": lambda a, b: a.merge(b, on="x", shuffle_method="tasks"),
    "merge with one partition": lambda a, b: a.merge(b.repartition(npartitions=1), on="x"),
    "join": lambda a, b: a.join(b, lsuffix="_a", rsuffix="_b", shuffle_method="tasks"),
    "where": lambda a, b: a.x.where(b.x > 2, b.x),
    "combine_first": lambda a, b: a.combine_first(b),
    "assign": lambda a, b: a.assign(z=b.y),
    "overlap": lambda a, b: a.x.map_partitions(lambda p, q: p + q, b.x).cumsum(),
}


@pytest.mark.filterwarnings("ignore:.*unknown divisions")
@pytest.mark.parametrize("operation", MEETINGS)
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
def test_no_task_loads_from_two_pools(operation: str, fuse: bool) -> None:
    apply = MEETINGS[operation]
    met = apply(pinned_frame("ecmwf"), pinned_frame("eumetsat", 5))
    plain = apply(frame(), frame(5))
    tasks = tasks_of(met.optimize(fuse=fuse))
    named = [pools_of_task(key, task) for key, task in tasks.items()]
    assert max(map(len, named)) == 1
    assert {site for pools in named for site in pools} == {"ecmwf", "eumetsat"}
    loads = sum(map(bool, named))
    unfused = tasks_of(plain.optimize(fuse=False))
    if not fuse:
        assert len(tasks) == len(unfused)
    assert loads == sum(str(key).startswith("('part-") for key in unfused), "a partition is loaded twice"
    with pytest.raises(MixedPoolsError, match="'ecmwf', 'eumetsat'"):
        get_pool(met)
    assert_same(met.compute(scheduler="synchronous"), plain.compute(scheduler="synchronous"))
    assert_same(
        met.optimize(fuse=fuse).compute(scheduler="synchronous"), plain.compute(scheduler="synchronous")
    )


def test_each_pool_keeps_its_chain_in_one_task() -> None:
    met = ((pinned_frame("ecmwf") + 1) * 2).x + pinned_frame("eumetsat").y * 3
    tasks = tasks_of(met.optimize())
    assert len(tasks) == 3 * len(PARTS), "for each partition one task in each pool, and one where they meet"


def test_an_optimized_frame_of_two_pools_can_be_used_on() -> None:
    met = (pinned_frame("ecmwf") + pinned_frame("eumetsat", 5)).optimize()
    more = (met.x + pinned_frame("eumetsat", 7).x).optimize()
    assert max(len(pools_of_task(key, task)) for key, task in tasks_of(more).items()) == 1
    expected = (whole() + whole(5)).x + whole(7).x
    assert_same(more.compute(scheduler="synchronous"), expected)


def test_projections_reach_what_reads_the_frame(files: Path) -> None:
    for make in (frame, lambda: dd.read_parquet(files / "frame.parquet")):
        (source,) = sources_of((made_inside(make).x + 1).optimize())
        assert source.operand("columns") == ["x"]
    met = made_inside(frame).x + made_inside(lambda: frame(5), "eumetsat").y
    sources = met.simplify().expr.find_operations(PinnedSource)
    assert {source.operand("_pool"): source.operand("columns") for source in sources} == {
        "ecmwf": ["x"],
        "eumetsat": ["y"],
    }


def test_filters_reach_what_reads_the_frame(files: Path) -> None:
    lazily = made_inside(lambda: dd.read_parquet(files / "frame.parquet", filesystem="arrow"))
    (source,) = sources_of(lazily[lazily.x > 3].optimize(fuse=False))
    assert source.operand("filters") == [[("x", ">", 3)]]


# ---------------------------------------------------------------------------------- pools, frames, processes


def test_the_inner_of_two_blocks_counts() -> None:
    with pool("ecmwf"):
        outer = frame()
        with pool("eumetsat"):
            inner = frame()
        with pool(None):
            free = frame()
        again = frame()
    assert [get_pool(a) for a in (outer, inner, free, again)] == ["ecmwf", "eumetsat", None, "ecmwf"]
    assert again._name == outer._name


def test_what_is_done_to_a_frame_inside_another_block_does_not_move_it() -> None:
    a, free = pinned_frame("ecmwf"), frame()
    with pool("eumetsat"):
        assert get_pool(a[a.x > 1].groupby("k").y.sum()) == "ecmwf"
        # A frame and its column have to have one source: those of two Dask would shuffle to line them up.
        assert get_pool(free[free.x > 1]) is None


def test_pins_are_off_where_propagation_is() -> None:
    with dask.config.set({"pools.propagate": False}):
        assert pinned_frame("ecmwf")._name == frame()._name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_frames_without_pins_are_left_as_they_are(operation: str) -> None:
    pinned_frame("ecmwf")
    expr = OPERATIONS[operation](frame()).expr
    assert arranged(expr, None) is expr
    assert new_collection(expr).expr is expr


def test_a_frame_that_uses_itself_over_and_over_is_looked_at_once() -> None:
    for lazily in (frame().x, (pinned_frame("ecmwf") + pinned_frame("eumetsat")).x):
        for _ in range(40):
            lazily = lazily + lazily
        tasks = tasks_of(lazily.optimize(fuse=False))
        assert len(tasks) < 50 * len(PARTS)


def run(code: str, stdin: bytes = b"") -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_names_of_frames_without_pins_do_not_depend_on_this_package() -> None:
    make = """
        import dask.dataframe as dd, pandas as pd
        data = dd.from_pandas(pd.DataFrame({"x": [1, 2, 3]}), npartitions=2)
        print((data.x + 1).optimize()._name, sorted((data + data).dask))
    """
    with_pins = """
        from dask_pools import pool
        import dask.dataframe as dd, pandas as pd
        with pool("ecmwf"):
            dd.from_pandas(pd.DataFrame({"x": [1, 2, 3]}), npartitions=2)
    """
    assert run(make) == run(with_pins + make)


def test_frames_keep_their_pins_and_names_in_another_process() -> None:
    data = pd.DataFrame({"x": range(6)})
    a, b = (made_inside(lambda: dd.from_pandas(data, npartitions=3), site) for site in ("ecmwf", "eumetsat"))
    met = a + b
    sent = pickle.dumps((a, b, met, met.optimize()))
    code = """
        import pickle, sys
        a, b, met, optimized = pickle.load(sys.stdin.buffer)
        from dask_pools import get_pool
        print(get_pool(a), get_pool(b), a._name, (a + b)._name, met._name, optimized._name)
        print(sorted(map(str, (a + b).optimize().dask)))
    """
    names = f"{a._name} {met._name} {met._name} {met.optimize()._name}"
    assert run(code, sent) == f"ecmwf eumetsat {names}\n{sorted(map(str, met.optimize().dask))}"


def test_dask_dataframe_may_be_imported_inside_the_block() -> None:
    code = """
        import sys
        from dask_pools import get_pool, pool
        assert "dask.dataframe" not in sys.modules, "importing this package must not import dask.dataframe"
        with pool("ecmwf"):
            import dask.dataframe as dd
            import pandas as pd
            data = dd.from_pandas(pd.DataFrame({"x": [1, 2, 3]}), npartitions=2)
        print(get_pool(data), get_pool(data.x.sum()))
    """
    assert run(code) == "ecmwf ecmwf"


def test_dask_does_not_warn_of_annotations_that_frames_do_take() -> None:
    code = """
        import warnings
        warnings.simplefilter("error")
        from dask_pools import pool
        import dask.dataframe as dd, pandas as pd
        with pool("ecmwf"):
            dd.from_pandas(pd.DataFrame({"x": [1]}), npartitions=1)
    """
    assert run(code) == ""


# --------------------------------------------------------------- what this leans on in Dask, one test each


def test_dask_finds_what_makes_a_collection_by_the_method_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    expr, asked = frame().expr, []

    def dispatch(cls: type) -> Callable[[Any], Any]:
        asked.append(cls)
        return lambda meta: lambda expr: expr

    monkeypatch.setattr(get_collection_type, "dispatch", dispatch)
    assert new_collection(expr) is expr
    assert asked == [pd.DataFrame]


def test_dask_rewrites_a_source_by_making_another_of_its_class() -> None:
    (source,) = sources_of(pinned_frame("ecmwf"))
    rewritten = source.substitute_parameters({"columns": ["x"]})
    assert type(rewritten) is type(source) is pinned_class(source._unpinned)
    assert (rewritten.operand("_pool"), rewritten.operand("columns")) == ("ecmwf", ["x"])
    assert rewritten._name != source._name


@pytest.mark.parametrize("filesystem", ["fsspec", "arrow"])
def test_dask_hides_fused_sources_in_the_operand_of_a_fused_source(files: Path, filesystem: str) -> None:
    plain = dd.read_parquet(files / "frame.parquet", filesystem=filesystem)[["x"]] + 1
    pinned = made_inside(lambda: dd.read_parquet(files / "frame.parquet", filesystem=filesystem))[["x"]] + 1
    (fused,) = plain.optimize(fuse=False).expr.find_operations(FusedIO)
    assert fused.dependencies() == []
    assert fused.operand("_expr").operand("columns") == ["x"]
    (fused,) = pinned.optimize(fuse=False).expr.find_operations(FusedIO)
    assert isinstance(fused, PinnedSource)
    assert isinstance(fused.operand("_expr"), PinnedSource)


def test_dask_keeps_what_it_fused_in_exprs() -> None:
    fused = (frame() + 1).optimize().expr
    assert isinstance(fused, Fused)
    assert isinstance(fused.exprs[-1], FromMap)


def test_dask_fuses_blockwise_operations_alone() -> None:
    met = pinned_frame("ecmwf") + pinned_frame("eumetsat")
    assert isinstance(met.expr, Separated)
    assert is_valid_blockwise_op((frame() + 1).expr)
    (meeting,) = met.expr.lower_completely().find_operations(Meeting)
    assert not is_valid_blockwise_op(meeting)
    assert is_valid_blockwise_op(meeting.frame)
    # The tasks are made of the operation, block by block.
    assert type(meeting.frame)._layer is Blockwise._layer
