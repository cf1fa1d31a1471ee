"""Making a plan of a placement: tasks told as steps, what crosses told of pairs of steps, and the bound.

A placement (`dask_pools.placement.lower.Placed`) says where each task is, a `dask_pools.placement.plan.Plan`
the same in a form to be read; neither knows of the other.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from dask.typing import Key
from dask.utils import key_split

from dask_pools import pins
from dask_pools.dask_internals import is_future, is_gathering, is_symbolic
from dask_pools.placement.assign import assign
from dask_pools.placement.layers import Layers
from dask_pools.placement.lower import FETCHED_ONCE, Placed
from dask_pools.placement.model import FREE, Model
from dask_pools.placement.plan import ANYWHERE, Edge, Plan, PoolShare, Step

MOST_LAYERS = 60
"""Above so many layers, like ones (of the same operation, variables and pool) are told as one."""

MOST_TASKS_FOR_BOUND = 300_000
"""Above so many tasks the least that any placement can move is not sought: it would take minutes."""


def summarise(
    placed: Placed,
    layers: Layers,
    source: Mapping[str, Any],
    workers: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> Plan:
    """Tell a placement in a form to be read.

    Parameters
    ----------
    placed : Placed
    layers : Layers
        What the placement was made from.
    source : mapping of str to layer
        The layers as they came, with their annotations.
    workers : mapping of str to int, optional
        How many workers each pool has; by default 1.
    budget : int, optional
        Bytes that may cross.
    """
    model = placed.model
    pools = [*model.pools, ANYWHERE]  # FREE, which is -1, is the last of them
    held = _held(placed, source)
    steps, step_of = _steps(placed, pools, _variables(placed, layers, held), held)
    choices = would_cross(placed, steps, step_of, _pinned(placed, source))
    steps = [replace(step, would_cross=choice) for step, choice in zip(steps, choices, strict=True)]
    edges, at_most = _edges(placed, pools, step_of, workers or {})
    read = _bytes_read(placed, layers, source, {placed.keys[task] for task in held})
    shares = {pool: PoolShare(pool) for pool in model.pools}
    for step in steps:
        share = shares.get(step.pool, PoolShare(step.pool))
        if step.kind == "held":
            shares[step.pool] = replace(share, held=share.held + step.bytes)
        else:
            shares[step.pool] = replace(share, tasks=share.tasks + step.tasks)
    for task in placed.outputs:
        pool = pools[placed.pools[task]]
        shares[pool] = replace(
            shares[pool], to_client=shares[pool].to_client + round(_nbytes_fetched(placed, task))
        )
    for pool, nbytes in read.items():
        shares[pool] = replace(shares.get(pool, PoolShare(pool)), read=nbytes)
    crossed = sum(edge.bytes for edge in edges)
    bound, exact = (0.0, True) if not crossed else lower_bound(model)
    return Plan(
        tuple(share for _, share in sorted(shares.items()) if share != PoolShare(share.pool)),
        tuple(steps),
        tuple(edges),
        bound,
        exact,
        at_most,
        crossed - _crossed_ungathered(placed) if crossed else 0,
        budget,
        placed.crossing()[1],
    )


def _crossed_ungathered(placed: Placed) -> int:
    """Bytes that would cross if the parts of results stayed where they are."""
    model = placed.model
    gathers = [is_gathering(layer) for layer in placed.layers]
    inputs = [[] if gather else list(of) for gather, of in zip(gathers, model.inputs, strict=True)]
    apart = replace(model, inputs=inputs)
    return replace(placed, model=apart, pools=assign(apart)).crossing()[0]


def _held(placed: Placed, source: Mapping[str, Any]) -> frozenset[int]:
    """Tasks that are no tasks, but results that the scheduler has already."""
    futures = {
        key
        for layer in source.values()
        if not is_symbolic(layer)
        for key, value in layer.items()
        if is_future(value)
    }
    return frozenset(
        task for task, key in enumerate(placed.keys) if key in futures or not placed.layers[task]
    )


def _name(key: Key) -> str:
    return str(key[0] if isinstance(key, tuple) and key else key)


def _variables(placed: Placed, layers: Layers, held: Container[int]) -> list[frozenset[str]]:
    """For each task the names of what was loaded for it."""
    of_layer = _variables_of_layers(layers)
    nothing: frozenset[str] = frozenset()
    own = {task: label for task, key in enumerate(placed.keys) if (label := pins.label_of_name(_name(key)))}
    # Loading that Dask fused into other layers can be seen there no more.
    fused = nothing.union(*of_layer.values()).difference(own.values())
    symbolic = {name for name, layer in layers.graph.layers.items() if is_symbolic(layer)}
    found: list[frozenset[str]] = []
    for task, key in enumerate(placed.keys):
        name = placed.layers[task]
        inputs = {found[source] for source in placed.model.inputs[task]}
        if task in own:
            found.append(frozenset([own[task]]))
        elif task in held:
            found.append(frozenset([key_split(key)]))
        elif not inputs:
            found.append(of_layer.get(name, nothing))
        else:
            found.append(nothing.union(*inputs, of_layer[name] & fused if name in symbolic else nothing))
    return found


def _variables_of_layers(layers: Layers) -> dict[str, frozenset[str]]:
    """For each layer the names of what was loaded for it."""
    graph = layers.graph
    nothing: frozenset[str] = frozenset()
    found: dict[str, frozenset[str]] = {}
    for name in graph._toposort_layers():
        if own := pins.label_of_name(name):
            found[name] = frozenset([own])
            continue
        sources = graph.dependencies[name]
        found[name] = nothing.union(*(found.get(source, nothing) for source in sources))
        if not sources and layers.pools.get(name):
            found[name] = frozenset([key_split(name)])
    return found


def _steps(
    placed: Placed, pools: Sequence[str], variables: Sequence[frozenset[str]], held: Container[int]
) -> tuple[list[Step], list[int]]:
    """Tasks by layer and pool; and for each task the number of its step."""
    names = [
        f"held {key_split(key)}" if task in held else placed.layers[task]
        for task, key in enumerate(placed.keys)
    ]
    many = len(set(names)) > MOST_LAYERS
    numbers: dict[tuple[Any, ...], int] = {}
    step_of: list[int] = []
    tasks: list[int] = []
    nbytes: list[float] = []
    about: list[tuple[str, tuple[str, ...], str, str]] = []
    outputs: set[int] = set()
    wanted = set(placed.outputs)
    for task, name in enumerate(names):
        operation = "held" if task in held else _operation(name)
        kind = "held" if task in held else "gather" if is_gathering(name) else "task"
        pool = placed.pools[task]
        label = tuple(sorted(variables[task]))
        if kind == "task" and label and not placed.model.inputs[task]:
            # By itself, or fused with what is done first, of which the layer then has the name.
            kind, operation = "read", "read" if pins.label_of_name(name) else operation
        identity = (kind, operation, label, pool) if many else (name, label, pool)
        number = numbers.setdefault(identity, len(numbers))
        if number == len(about):
            about.append((operation, label, pools[pool], kind))
            tasks.append(0)
            nbytes.append(0.0)
        step_of.append(number)
        tasks[number] += 1
        nbytes[number] += _nbytes_fetched(placed, task)
        if task in wanted:
            outputs.add(number)
    steps = [
        Step(operation, label, pool, tasks[n], round(nbytes[n]), kind, n in outputs)
        for n, (operation, label, pool, kind) in enumerate(about)
    ]
    return steps, step_of


def _pinned(placed: Placed, source: Mapping[str, Any]) -> frozenset[str]:
    """Layers that a user has pinned, in whole or in part."""
    names = source.keys() & set(placed.layers)
    return frozenset(name for name in names if pins.pools_of_layer(source[name], name))


def would_cross(
    placed: Placed, steps: Sequence[Step], step_of: Sequence[int], pinned: Container[str]
) -> list[tuple[tuple[str, int], ...]]:
    """For each step what its results and what it reads would make cross, by the pool it might be in.

    All tasks of a step are in one pool, so what crosses can be told of steps instead of tasks.

    Parameters
    ----------
    placed : Placed
    steps : sequence of Step
    step_of : sequence of int
        For each task its step.
    pinned : container of str
        Layers of which nothing is told.
    """
    model = placed.model
    fixed = {step for step, layer in zip(step_of, placed.layers, strict=True) if layer in pinned}
    fixed.update(n for n, step in enumerate(steps) if step.kind in ("read", "held") or step.pool == ANYWHERE)
    readers: list[set[int]] = [set() for _ in model.inputs]
    for task, inputs in enumerate(model.inputs):
        for result in inputs:
            readers[result].add(step_of[task])
    nets: defaultdict[tuple[int, frozenset[int]], float] = defaultdict(float)
    for result, of_result in enumerate(readers):
        if of_result - {step_of[result]}:
            nets[step_of[result], frozenset(of_result)] += model.nbytes[result]
    near: list[list[tuple[int, frozenset[int], float]]] = [[] for _ in steps]
    for (home, of_net), nbytes in nets.items():
        for step in {home, *of_net} - fixed:
            near[step].append((home, of_net, nbytes))
    where = [step.pool for step in steps]

    def crossing(step: int, pool: str) -> float:
        def at(other: int) -> str:
            return pool if other == step else where[other]

        return sum(
            nbytes * len({at(reader) for reader in of_net} - {at(home), ANYWHERE})
            for home, of_net, nbytes in near[step]
            if at(home) != ANYWHERE
        )

    found: list[tuple[tuple[str, int], ...]] = []
    for step in range(len(steps)):
        beside = {where[other] for home, of_net, _ in near[step] for other in (home, *of_net)}
        pools = set() if step in fixed else {where[step], *beside} - {ANYWHERE}
        choice = [(pool, round(crossing(step, pool))) for pool in pools]
        found.append(tuple(sorted(choice, key=lambda one: (one[1], one[0]))))
    return found


def _operation(layer: str) -> str:
    """Name of a layer without its token."""
    name = str(key_split(layer))
    return name.split("@")[0] if "@" in name else name


def _edges(
    placed: Placed, pools: Sequence[str], step_of: Sequence[int], workers: Mapping[str, int]
) -> tuple[list[Edge], int]:
    """Find what steps read from each other, and how much crosses if every worker fetches for itself."""
    model = placed.model
    readers: list[dict[int, list[int]]] = [{} for _ in model.inputs]
    plain: set[tuple[int, int]] = set()
    for task, inputs in enumerate(model.inputs):
        pool = placed.pools[task]
        for source in inputs:
            if step_of[source] != step_of[task]:
                plain.add((step_of[source], step_of[task]))
            if pool != FREE and placed.pools[source] not in (FREE, pool):
                readers[source].setdefault(pool, []).append(task)
    nbytes: defaultdict[tuple[int, int], float] = defaultdict(float)
    results: Counter[tuple[int, int]] = Counter()
    at_most = 0.0
    for source, by_pool in enumerate(readers):
        for pool, tasks in by_pool.items():
            # The first that reads it fetches it for its pool.
            edge = (step_of[source], step_of[tasks[0]])
            nbytes[edge] += model.nbytes[source]
            results[edge] += 1
            # What is large is fetched once for all workers of the pool.
            several = 1 if model.nbytes[source] >= FETCHED_ONCE else workers.get(pools[pool], 1)
            at_most += model.nbytes[source] * max(1, min(several, len(tasks)))
    edges = [
        Edge(source, target, round(nbytes.get((source, target), 0.0)), results.get((source, target), 0))
        for source, target in sorted(plain | nbytes.keys())
    ]
    return edges, round(at_most)


def _nbytes_fetched(placed: Placed, task: int) -> float:
    """Bytes of a result as the client gets it; one that is put together is as large as its parts."""
    if is_gathering(placed.layers[task]) and placed.model.inputs[task]:
        return sum(placed.model.nbytes[source] for source in placed.model.inputs[task])
    return placed.model.nbytes[task]


def _bytes_read(
    placed: Placed, layers: Layers, source: Mapping[str, Any], held: Container[Key]
) -> dict[str, int]:
    """Bytes of the chunks that are loaded in each pool."""
    totals: defaultdict[str, float] = defaultdict(float)
    loads: dict[str, dict[Key, str] | str | None] = {}
    # Loading tasks that Dask has fused with others are no tasks of the placement any more.
    for layer in layers.graph.cull({placed.keys[task] for task in placed.outputs}).layers.values():
        for key in layer.get_output_keys():
            # Layers that are culled get new names, keys do not.
            name = _name(key)
            if name not in loads:
                inputs = layers.graph.dependencies.get(name, ())
                loads[name] = (
                    pins.pools_of_layer(source[name], name)
                    if name in source and name in layers.sizes and layers.sizes.keys().isdisjoint(inputs)
                    else None
                )
            found = loads[name]
            if found is None or isinstance(key, str):
                continue
            pool = found if isinstance(found, str) else found.get(key)
            chunks, itemsize = layers.sizes[name]
            if pool and key not in held and len(key) == len(chunks) + 1:
                totals[pool] += itemsize * math.prod(
                    along[i] for along, i in zip(chunks, key[1:], strict=True)
                )
    return {pool: round(nbytes) for pool, nbytes in totals.items()}


def lower_bound(model: Model) -> tuple[float | None, bool]:
    """Bytes that must cross in any placement of a model that keeps its pins.

    For two pools this is the least that is possible, a minimum cut; for more it is half the sum, over the
    pools, of the least that must cross between that pool and all others: whatever crosses leaves one pool and
    enters another (the bound of the isolating cuts of Dahlhaus et al., SIAM J. Comput. 23, 1994).

    Returns
    -------
    bytes : float or None
        None if the model has more than `MOST_TASKS_FOR_BOUND` tasks.
    exact : bool
        Whether a placement exists that moves no more.
    """
    used = sorted(set(model.pinned) - {FREE})
    if len(used) < 2:
        return 0.0, True
    if len(model.inputs) > MOST_TASKS_FOR_BOUND:
        return None, False
    if len(used) == 2:
        return _least_cut(model, used[0]), True
    return sum(_least_cut(model, pool) for pool in used) / 2, False


def _least_cut(model: Model, pool: int) -> float:
    """Least bytes that cross between `pool` and all others taken as one.

    A result that several tasks of the other side read crosses once. Each task therefore has two nodes beside
    its own: one that its readers are on if any is outside, and one that they are on if any is inside.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    tasks = len(model.inputs)
    fanned = np.zeros(tasks, bool)
    counts = np.fromiter(map(len, model.inputs), np.int64, tasks)
    reads = np.fromiter((s for inputs in model.inputs for s in inputs), np.int64, int(counts.sum()))
    readers = np.repeat(np.arange(tasks), counts)
    fanned[reads] = True
    nbytes = np.asarray(model.nbytes, float)
    total = nbytes[fanned].sum()
    if not total:
        return 0.0
    # SciPy takes 32-bit integers: rounding down keeps the bound a bound.
    endless = 2**31 - 1
    scale = min(1.0, (endless // 4) / total)
    capacity = np.floor(nbytes * scale).astype(np.int64)
    start, end = 3 * tasks, 3 * tasks + 1
    own = np.arange(tasks)
    outside, inside = own + tasks, own + 2 * tasks
    pinned = np.asarray(model.pinned)
    here, there = own[pinned == pool], own[(pinned != pool) & (pinned != FREE)]
    senders = own[fanned]
    tails = [senders, outside[reads], readers, inside[senders], np.full(len(here), start), there]
    heads = [outside[senders], readers, inside[reads], senders, here, np.full(len(there), end)]
    limits = [
        capacity[senders],
        np.full(len(reads), endless),
        np.full(len(reads), endless),
        capacity[senders],
        np.full(len(here), endless),
        np.full(len(there), endless),
    ]
    graph = csr_matrix(
        (np.concatenate(limits).astype(np.int32), (np.concatenate(tails), np.concatenate(heads))),
        shape=(3 * tasks + 2,) * 2,
    )
    return float(int(maximum_flow(graph, start, end).flow_value) / scale)
