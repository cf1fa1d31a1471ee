"""Minimum cuts: the cheapest way to part the nodes of a network in two. Pure: standard library only."""

from __future__ import annotations

from collections import deque

INFINITE = float("inf")


class BudgetExceededError(Exception):
    """More steps were needed than were allowed."""


class Network:
    """A flow network with a source and a sink; every other node has a number.

    Parameters
    ----------
    nodes : int
        Number of nodes besides the source and the sink.

    Notes
    -----
    The maximum flow is found by the method of Dinic (E. A. Dinic, Soviet Math. Doklady 11, 1970): shortest
    paths from source to sink, all of one length at a time. Networks of placements are wide and shallow, so
    there are few lengths.
    """

    def __init__(self, nodes: int) -> None:
        self.source, self.sink = nodes, nodes + 1
        self._arcs: list[list[int]] = [[] for _ in range(nodes + 2)]
        self._to: list[int] = []
        self._left: list[float] = []

    def node(self) -> int:
        """Add a node."""
        self._arcs.append([])
        return len(self._arcs) - 1

    def join(self, start: int, end: int, capacity: float, back: float = 0.0) -> None:
        """Join two nodes, with a capacity from `start` to `end` and one back."""
        number = len(self._to)
        self._to += (end, start)
        self._left += (capacity, back)
        self._arcs[start].append(number)
        self._arcs[end].append(number + 1)

    def cut(self, budget: float = INFINITE) -> tuple[list[bool], float]:
        """Part the nodes so that the capacity from the source's side to the sink's is least.

        Parameters
        ----------
        budget : float
            Number of arcs that may be looked at.

        Returns
        -------
        sides : list of bool
            For each node whether it is on the source's side, which is the smallest of all minimum cuts.
        budget : float
            What is left of it.

        Raises
        ------
        BudgetExceededError
        """
        to, left, arcs, source, sink = self._to, self._left, self._arcs, self.source, self.sink
        while True:
            level = [-1] * len(arcs)
            level[source] = 0
            queue = deque([source])
            while queue:
                node = queue.popleft()
                budget -= len(arcs[node])
                for arc in arcs[node]:
                    end = to[arc]
                    if level[end] < 0 and left[arc] > 0:
                        level[end] = level[node] + 1
                        queue.append(end)
            if level[sink] < 0:
                return [found >= 0 for found in level], budget
            if budget < 0:
                raise BudgetExceededError
            budget = self._push(level, budget)

    def _push(self, level: list[int], budget: float) -> float:
        """Send what can be sent along shortest paths; returns what is left of the budget."""
        to, left, arcs, source, sink = self._to, self._left, self._arcs, self.source, self.sink
        tried = [0] * len(arcs)
        path: list[int] = []
        node = source
        while True:
            if node == sink:
                amount = min([left[arc] for arc in path])
                kept = -1
                for place, arc in enumerate(path):
                    left[arc] -= amount
                    left[arc ^ 1] += amount
                    if kept < 0 and left[arc] <= 0:
                        kept = place
                # Go on from the first arc that is full now.
                node = to[path[kept] ^ 1]
                budget -= len(path)
                del path[kept:]
                continue
            own, at = arcs[node], tried[node]
            started = at
            while at < len(own) and not (left[own[at]] > 0 and level[to[own[at]]] == level[node] + 1):
                at += 1
            tried[node] = at
            budget -= at - started + 1
            if budget < 0:
                raise BudgetExceededError
            if at < len(own):
                path.append(own[at])
                node = to[own[at]]
            elif node == source:
                return budget
            else:
                level[node] = -1
                node = to[path.pop() ^ 1]
                tried[node] += 1
