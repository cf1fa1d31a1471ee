"""Minimum cuts, against networkx."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_pools.placement.cut import INFINITE, BudgetExceededError, Network

NODES = 7
arcs = st.lists(
    st.tuples(
        st.integers(0, NODES + 1),
        st.integers(0, NODES + 1),
        st.sampled_from([0, 0.5, 1, 3, INFINITE]),
        st.sampled_from([0, 0, 2]),
    ).filter(lambda arc: arc[0] != arc[1]),
    max_size=25,
)


@given(arcs)
def test_no_cut_is_cheaper(arcs):
    network, graph = Network(NODES), nx.DiGraph()
    graph.add_nodes_from(range(NODES + 2))
    for start, end, capacity, back in arcs:
        if INFINITE in (capacity, back) and {start, end} & {network.source, network.sink}:
            capacity = 4  # nothing ties both ends without limit
        network.join(start, end, capacity, back)
        for a, b, amount in ((start, end, capacity), (end, start, back)):
            if graph.has_edge(a, b):
                amount += graph[a][b]["capacity"]
            graph.add_edge(a, b, capacity=amount)
    sides, _ = network.cut()
    cost = sum(capacity for a, b, capacity in graph.edges.data("capacity") if sides[a] and not sides[b])
    assert sides[network.source]
    assert not sides[network.sink]
    assert cost == pytest.approx(nx.minimum_cut_value(graph, network.source, network.sink))


def test_the_source_takes_no_more_nodes_than_it_must():
    network = Network(2)
    network.join(network.source, 0, 1)
    network.join(0, 1, 1)
    network.join(1, network.sink, 1)
    assert network.cut()[0] == [False, False, True, False]


def forked():
    network = Network(50)
    for node in range(50):
        network.join(network.source, node, 2)
        network.join(node, network.sink, 1)
    return network


def test_a_budget_is_kept():
    assert 0 < forked().cut(1000)[1] < 1000 - 100
    with pytest.raises(BudgetExceededError):
        forked().cut(60)
