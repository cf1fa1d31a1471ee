"""Pictures: what explain() tells, and what ran where; saved in three formats and shown in notebooks."""

from __future__ import annotations

import builtins
import json
import re

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from dask_pools import connect, data_centres, explain, pool, task_stream, visualize_pools
from dask_pools.pictures import CROSSING, colours_of, tint
from dask_pools.pins import source_name
from dask_pools.placement.plan import ANYWHERE, Edge, Plan, PoolShare, Step
from dask_pools.timeline import Span, TaskStream
from dask_pools.traffic import Flow, Measurement, Traffic
from dask_pools.visualize import _arrange, _shortened

pytest.importorskip("matplotlib")

BEGINNINGS = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}


def loaded(label: str, site: str, chunks: int = 3) -> da.Array:
    with pool(site):
        return da.map_blocks(
            lambda block_info=None: np.ones(block_info[None]["chunk-shape"]),
            chunks=((20,) * chunks, (30,)),
            dtype="f8",
            meta=np.empty((0, 0)),
            name=source_name(label, site, dask.base.tokenize(label, site)),
        )


@pytest.fixture
def plan() -> Plan:
    with dask.config.set(scheduler="threads"):
        a, b = loaded("temperature", "ecmwf"), loaded("observed", "eumetsat")
        both = xr.concat([xr.DataArray(a, dims=("t", "x")), xr.DataArray(b, dims=("t", "x"))], "site")
        return explain((both - both.mean("t")).std("t"), a.max() - b.min())


def texts(svg: bytes | str) -> list[str]:
    svg = svg.decode() if isinstance(svg, bytes) else svg
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_pictures_are_saved_by_the_ending_of_their_name(plan, tmp_path, kind):
    path = tmp_path / f"pools.{kind}"
    visualize_pools(plan, filename=path)
    assert path.read_bytes().startswith(BEGINNINGS[kind])


def test_another_ending_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(ValueError, match=r"\.svg, \.png or \.pdf"):
        visualize_pools(object(), filename=tmp_path / "pools.gif")


def test_a_picture_shows_itself_in_a_notebook_and_names_pools_variables_and_bytes(plan):
    picture = visualize_pools(plan)
    said = texts(picture._repr_svg_())
    assert {"ecmwf", "eumetsat", "temperature", "observed", "read", "client"} <= set(said)
    crossing = plan.crossings[0]
    assert any("will cross between pools" in words for words in said)
    assert any(words in dask.utils.format_bytes(crossing.bytes) for words in said)
    assert CROSSING.lower() in picture._repr_svg_().lower()
    assert picture._repr_png_().startswith(BEGINNINGS["png"])


def test_a_picture_is_the_same_each_time(plan):
    assert visualize_pools(plan)._repr_svg_() == visualize_pools(plan)._repr_svg_()


def test_a_layer_that_is_split_has_a_box_in_each_pool(plan):
    split = [step.pool for step in plan.steps if step.operation == "concatenate"]
    assert set(split) == {"ecmwf", "eumetsat"}


def test_boxes_do_not_lie_upon_each_other(plan):
    for drawn in (plan, _shortened(plan)):
        layout = _arrange(drawn)
        spots = [(step.pool, layout.column[n], layout.row[n,]) for n, step in enumerate(drawn.steps)]
        assert len(set(spots)) == len(spots)
        for edge in drawn.edges:
            assert layout.column[edge.source] < layout.column[edge.target]
        for (place, row), pool_ in zip(layout.row.items(), [None] * len(layout.row), strict=True):
            assert row >= 0, (place, pool_)


def test_chains_told_as_one_keep_what_crosses(plan):
    short = _shortened(plan)
    assert len(short.steps) < len(plan.steps)
    assert short.pairs == plan.pairs
    assert [edge.source < edge.target for edge in short.edges] == [True] * len(short.edges)


def test_steps_that_read_each_other_in_a_circle_are_drawn_all_the_same():
    # As happens where like steps of a large graph are told as one.
    steps = tuple(Step(name, (), "ecmwf", 5, 100, "task", name == "b") for name in "ab")
    plan = Plan((PoolShare("ecmwf", 10),), steps, (Edge(0, 1, 0, 0), Edge(1, 0, 0, 0)))
    assert "client" in texts(visualize_pools(plan)._repr_svg_())


def test_nothing_to_draw_is_a_picture_too():
    assert visualize_pools(np.ones(3))._repr_svg_()


def test_no_pool_has_the_colour_of_crossings_and_all_are_told_apart():
    colours = colours_of([*"abcdefg", ANYWHERE])
    assert len(set(colours.values())) == 8
    assert CROSSING not in colours.values()
    assert tint("#000000", 0) == (1.0, 1.0, 1.0)


def test_without_matplotlib_what_to_install_is_said(plan, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"intake-pools\[pictures\]"):
        visualize_pools(plan)


# The task stream.


def test_what_ran_is_drawn_by_pool_with_transfers_between_pools(client, tmp_path):
    connect(client)
    a, b = loaded("temperature", "ecmwf"), loaded("observed", "eumetsat")
    with task_stream(client) as stream:
        assert (a - b).sum().compute() == 0
    assert {span.pool for span in stream.spans} == {"ecmwf", "eumetsat"}
    crossing = [span for span in stream.spans if span.crosses]
    assert crossing
    assert {(span.source_pool, span.pool) for span in crossing} == set(stream.traffic.pairs)
    said = texts(stream._repr_svg_())
    assert {"ecmwf", "eumetsat", "transfer between pools", "seconds"} <= set(said)
    stream.visualize(tmp_path / "stream.png")
    assert (tmp_path / "stream.png").read_bytes().startswith(BEGINNINGS["png"])


def test_what_ran_before_is_not_in_the_stream(client):
    connect(client)
    a = loaded("temperature", "ecmwf")
    a.max().compute()
    with task_stream(client) as stream:
        pass
    assert stream.spans == ()
    assert stream.visualize()._repr_svg_()


def test_asking_before_the_block_has_ended_says_so():
    with pytest.raises(RuntimeError, match="has ended"):
        _ = TaskStream(Measurement()).spans


def test_how_long_bytes_took_makes_costs_for_the_data_centres_file():
    def crossing(source, target, start, stop):
        return Span(target, f"tcp://{target}", 0, "transfer", "add", start, stop, f"tcp://{source}", source)

    flows = [Flow("a", "b", 8_000_000, 2), Flow("b", "a", 2_000_000, 1), Flow("a", "c", 500, 1)]
    measured = Measurement()
    measured._traffic = Traffic(tuple(flows))
    stream = TaskStream(measured)
    # From a to b two transfers overlap: 2 s for 8 MB.
    spans = [("a", "b", 0.0, 1.5), ("a", "c", 0.5, 5.0), ("a", "b", 1.0, 2.0), ("b", "a", 1.0, 3.0)]
    stream._spans = tuple(crossing(*span) for span in spans)
    assert stream.costs() == {"a": {"b": 1.0}, "b": {"a": 4.0}}
    text = json.dumps({"data_centres": {site: {} for site in "ab"}, "costs": stream.costs()})
    assert data_centres.parse(text, "measured.yaml").costs == stream.costs()


def test_one_message_that_several_tasks_waited_for_is_one_line():
    measured = Measurement()
    measured._traffic = Traffic()
    stream = TaskStream(measured)
    transfer = Span("right", "tcp://b", 0, "transfer", "add", 0.0, 1.0, "tcp://a", "left")
    stream._spans = (transfer, transfer, Span("left", "tcp://a", 0, "compute", "x", 0.0, 1.0))
    assert any("in 1 transfers" in words or "in 1 transfer;" in words for words in texts(stream._repr_svg_()))
