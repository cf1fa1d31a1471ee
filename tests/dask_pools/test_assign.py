"""What placements of plain models promise."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_pools.placement import contract
from dask_pools.placement.assign import assign, by_layer, look_back, lower_bound, single
from dask_pools.placement.lower import Placed
from dask_pools.placement.model import FREE, Crossing, Model, cost, crossings
from dask_pools.placement.plan import ANYWHERE, Step
from dask_pools.placement.summary import would_cross

A, B, C = 0, 1, 2


def place(inputs, nbytes, pinned, **more):
    return assign(Model(["a", "b"], inputs, nbytes, pinned, **more))


@st.composite
def models(draw, pools=(2, 3), most=12, free=10, sizes=(0, 1, 2, 3, 10, 100), priced=True):
    """Random graphs with sources that are mostly pinned, and other tasks that are mostly not."""
    names = [chr(ord("a") + number) for number in range(draw(st.sampled_from(pools)))]
    model = Model(names)
    for task in range(draw(st.integers(1, most))):
        inputs = draw(st.lists(st.integers(0, task - 1), max_size=3, unique=True)) if task else []
        pinned = draw(st.integers(0, 9)) < (1 if inputs else 7) or model.pinned.count(FREE) >= free
        model.inputs.append(inputs)
        model.nbytes.append(draw(st.sampled_from(sizes)))
        model.pinned.append(draw(st.integers(0, len(names) - 1)) if pinned else FREE)
        model.layers.append(draw(st.integers(task // 3, task // 2)))
    if priced and draw(st.booleans()):
        prices = st.sampled_from([0.5, 1, 2, 5])
        model.costs = [[0 if p == q else draw(prices) for q in names] for p in names]
    model.threads = [draw(st.integers(1, 4)) for _ in names]
    return model


def least(model):
    """Cost of the best of all placements, by trying each."""
    free = [task for task, pool in enumerate(model.pinned) if pool == FREE]
    costs = []
    for choice in product(range(len(model.pools)), repeat=len(free)):
        pools = list(model.pinned)
        for task, pool in zip(free, choice, strict=True):
            pools[task] = pool
        if not any(crossing.task in model.stays for crossing in crossings(model, pools)):
            costs.append(cost(model, pools))
    return min(costs, default=None)


@pytest.fixture(params=[False, True], ids=["as they are", "like tasks joined"])
def joined(request, monkeypatch):
    """Small models are not contracted to groups of like tasks; here they are, too."""
    if request.param:
        monkeypatch.setattr(contract, "SMALL", 0)


@pytest.fixture(params=[False, True], ids=["sizes tell tasks apart", "sizes do not"])
def roughly(request, monkeypatch):
    """Where nearly all sizes differ, tasks are joined that are alike but for their sizes."""
    monkeypatch.setattr(contract, "SMALL", 0)
    if request.param:
        monkeypatch.setattr(contract, "MAX_SIZES", 0)


EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@EXAMPLES
@given(models(pools=(2,)))
def test_with_two_pools_nothing_costs_less(joined, model):
    assert cost(model, assign(model)) == pytest.approx(least(model))


@EXAMPLES
@given(models(pools=(2,), sizes=(1, 8)))
def test_nothing_costs_less_where_many_tasks_are_alike(joined, model):
    copies = 3
    many = Model(model.pools, threads=model.threads, costs=model.costs)
    for copy in range(copies):
        many.inputs += [[source + copy * len(model.inputs) for source in inputs] for inputs in model.inputs]
        many.nbytes += model.nbytes
        many.pinned += model.pinned
    assert cost(many, assign(many)) == pytest.approx(copies * least(model))


@EXAMPLES
@given(models(pools=(3,), free=6))
def test_with_three_pools_little_costs_less(joined, model):
    found, best = cost(model, assign(model)), least(model)
    assert found <= 1.25 * best
    assert lower_bound(model) <= best * (1 + 1e-9)


@EXAMPLES
@given(models(pools=(2, 3, 4), most=40, free=99))
def test_simple_rules_never_do_better(roughly, model):
    pools = assign(model)
    found = cost(model, pools) * (1 - 1e-9)
    assert found <= cost(model, by_layer(model))
    assert found <= cost(model, look_back(model))
    assert all(found <= cost(model, single(model, pool, pools)) for pool in range(len(model.pools)))


@EXAMPLES
@given(models(pools=(1, 2, 3, 4), most=40, free=99))
def test_pins_are_kept_and_what_is_tied_to_one_is_placed(roughly, model):
    pools = assign(model)
    assert all(pin in (FREE, pool) for pin, pool in zip(model.pinned, pools, strict=True))
    for task, inputs in enumerate(model.inputs):
        for source in inputs:
            assert (pools[source] == FREE) == (pools[task] == FREE)


@EXAMPLES
@given(models(pools=(2, 3), most=9, free=6, priced=False), st.data())
def test_what_must_stay_stays_wherever_that_can_be(roughly, model, data):
    model.stays = data.draw(st.sets(st.integers(0, len(model.inputs) - 1), max_size=3))
    best = least(model)
    if best is not None:
        pools = assign(model)
        assert not [crossing for crossing in crossings(model, pools) if crossing.task in model.stays]


@EXAMPLES
@given(models(most=12, priced=False))
def test_a_decision_is_explained_by_what_would_cross_in_other_pools(model):
    pools = assign(model)
    kinds = list(dict.fromkeys(zip(model.layers, pools, strict=True)))
    step_of = [kinds.index(kind) for kind in zip(model.layers, pools, strict=True)]
    names = [*model.pools, ANYWHERE]
    steps = [Step(str(layer), (), names[pool], 0, 0, "task", output=False) for layer, pool in kinds]
    placed = Placed(list(range(len(pools))), list(map(str, model.layers)), [], model, pools)
    for number, choices in enumerate(would_cross(placed, steps, step_of, ())):
        here = dict(choices).get(steps[number].pool)
        assert (here is None) == (steps[number].pool == ANYWHERE)
        for name, nbytes in choices:
            pool = model.pools.index(name)
            moved = [pool if step == number else before for step, before in zip(step_of, pools, strict=True)]
            assert cost(model, moved) - cost(model, pools) == nbytes - here


def test_a_result_costs_once_for_each_pool_that_reads_it():
    model = Model(["a", "b", "c"], [[], [0], [0], [0]], [10, 1, 1, 1], [A, B, B, C])
    assert sorted(crossings(model, model.pinned)) == [Crossing(0, A, B, 10), Crossing(0, A, C, 10)]
    model.costs = [[0, 1, 3], [1, 0, 1], [1, 1, 0]]
    assert cost(model, model.pinned) == 40


def test_a_result_that_grows_is_made_beside_its_consumers():
    # 0 (a) -> 1 grows -> 2, which reads 3 (b) as well
    assert place([[], [0], [], [1, 2]], [1, 1000, 1000, 1], [A, FREE, B, FREE]) == [A, B, B, B]


def test_what_reads_nothing_follows_its_consumers():
    assert place([[], [], [0, 1]], [100, 50, 1], [A, FREE, FREE]) == [A, A, A]


def test_what_is_tied_to_no_pin_stays_free():
    assert place([[], [], [1]], [1, 1, 1], [A, FREE, FREE]) == [A, FREE, FREE]


def test_a_pin_downstream_of_others_is_kept():
    assert place([[], [0], [1]], [10, 1, 1], [A, B, FREE]) == [A, B, B]


@pytest.mark.parametrize("chunks", [10, 400])
@pytest.mark.parametrize(("threads", "share"), [([2, 2], 0.5), ([3, 1], 0.75)])
def test_equal_sizes_are_shared_among_the_threads_of_the_pools(chunks, threads, share):
    # a[i] + b[i], then something of that size made of it
    inputs, pinned = [[] for _ in range(2 * chunks)], [A] * chunks + [B] * chunks
    inputs += [[i, chunks + i] for i in range(chunks)] + [[2 * chunks + i] for i in range(chunks)]
    pools = place(inputs, [8.0] * 4 * chunks, pinned + [FREE] * 2 * chunks, threads=threads)
    sums, after = pools[2 * chunks : 3 * chunks], pools[3 * chunks :]
    assert sums == after
    # What is read in each pool counts as work, too.
    work = [8 * chunks + (16 + 8 + 8 + 8) * sums.count(pool) for pool in (A, B)]
    assert work[A] / sum(work) == pytest.approx(share, abs=2 / chunks)


def test_a_graph_is_placed_alike_in_whatever_order_its_tasks_come():
    # What is made of b.max() - a.max() costs the same on either side; so it does between the two.
    reads = {"a": "", "b": "", "a max": "a", "b max": "b", "difference": ("a max", "b max")}
    reads |= {"out": ("difference",), "others of a": "a", "others of b": "b"}
    large = {"a": A, "b": B}
    found = set()
    for seed in range(20):
        firsts, seconds, rest = ["a", "b"], ["a max", "b max"], [*reads][4:]
        random = Random(seed)
        random.shuffle(firsts)
        random.shuffle(seconds)
        order = [*firsts, *seconds, *rest]
        inputs = [[order.index(source) for source in reads[name]] for name in order]
        nbytes = [100 if name in large else 1 for name in order]
        pools = place(inputs, nbytes, [large.get(name, FREE) for name in order])
        found.add(pools[order.index("difference")])
    assert len(found) == 1


def test_prices_decide_which_way_bytes_go():
    inputs, pinned = [[], [], [0, 1]], [A, B, FREE]
    assert place(inputs, [10, 20, 1], pinned) == [A, B, B]
    assert place(inputs, [10, 20, 1], pinned, costs=[[0, 5], [1, 0]]) == [A, B, A]


def test_a_million_steps_too_many_end_in_a_placement_all_the_same(monkeypatch):
    random = Random(0)
    n = 300
    inputs = [random.sample(range(i), min(i, 3)) if i > 60 else [] for i in range(n)]
    pinned = [random.randrange(3) if i <= 60 else FREE for i in range(n)]
    model = Model(["a", "b", "c"], inputs, [random.randint(1, 9) for _ in range(n)], pinned)
    monkeypatch.setattr("dask_pools.placement.assign.STEPS", 0)
    monkeypatch.setattr("dask_pools.placement.assign.STEPS_PER_TASK", 0)
    assert cost(model, assign(model)) <= min(cost(model, rule(model)) for rule in (look_back, by_layer))
