"""How many workers a pool should have, decided over plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_pools.cluster.adapting import Bounds, decide, workers_needed
from dask_pools.demand import PoolLoad, WorkerLoad

SECONDS = st.floats(0, 1e6)


@st.composite
def loads(draw: st.DrawFn) -> PoolLoad:
    workers = [
        WorkerLoad(
            name=f"w-{number}",
            threads=2,
            idle=draw(st.sampled_from([0.0, 5.0, 60.0, 600.0])),
            nbytes=draw(st.integers(0, 2000)),
            memory=draw(st.sampled_from([0, 1000])),
            sole=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return PoolLoad(
        queued=draw(st.integers(0, 1000)),
        processing=sum(worker.idle == 0 for worker in workers),
        seconds=draw(SECONDS),
        later=draw(st.booleans()),
        quiet=draw(SECONDS),
        workers=tuple(workers),
    )


BOUNDS = st.builds(
    lambda minimum, more: Bounds(minimum, None if more is None else minimum + more, 5.0, 60.0),
    st.integers(0, 3),
    st.none() | st.integers(0, 5),
)


@given(loads(), st.integers(0, 4), BOUNDS)
def test_a_decision_keeps_its_bounds_and_its_promises(load: PoolLoad, starting: int, bounds: Bounds):
    decision = decide(load, starting, bounds, threads=2)
    present = len(load.workers) + starting
    if decision.wanted > present:
        assert not decision.go
        assert not decision.withdraw
        assert bounds.maximum is None or decision.wanted <= bounds.maximum
    else:
        assert decision.wanted == present - len(decision.go) - decision.withdraw
        assert decision.wanted >= bounds.minimum or present < bounds.minimum
    by_name = {worker.name: worker for worker in load.workers}
    gone = [by_name[name] for name in decision.go]
    assert len(set(decision.go)) == len(gone)
    assert all(worker.idle >= bounds.idle for worker in gone)
    assert not (gone and load.queued)
    assert not (decision.withdraw and load.quiet < bounds.idle)
    if gone and len(gone) == len(load.workers):
        # Nobody is left to take a result, so none may be held here alone.
        assert not any(worker.sole for worker in load.workers)
    if load.later and present:
        assert decision.wanted >= 1


@given(loads(), BOUNDS)
def test_work_without_workers_asks_for_some_at_once(load: PoolLoad, bounds: Bounds):
    asleep = replace(load, workers=(), processing=0, queued=max(1, load.queued))
    decision = decide(asleep, 0, bounds)
    assert decision.wanted >= (1 if bounds.maximum != 0 else 0)


@given(st.integers(1, 10_000), st.floats(0.01, 100), st.integers(1, 16))
def test_more_work_never_asks_for_fewer_workers(tasks: int, duration: float, threads: int):
    bounds = Bounds()
    some = PoolLoad(queued=tasks, seconds=tasks * duration)
    more = PoolLoad(queued=2 * tasks, seconds=2 * tasks * duration)
    assert workers_needed(some, bounds, threads) <= workers_needed(more, bounds, threads)
    assert workers_needed(some, bounds, threads) <= -(-tasks // threads)


def test_results_that_fill_the_memory_ask_for_more_workers():
    worker = WorkerLoad("w-0", 1, 0.0, nbytes=900, memory=1000, sole=True)
    load = PoolLoad(processing=1, seconds=0.1, workers=(worker,))
    assert decide(load, 0, Bounds()).wanted == 2
    # Without anything to do they stay where they are, and so does the worker.
    idle = replace(load, processing=0, workers=(replace(worker, idle=1e6),))
    assert decide(idle, 0, Bounds()).go == ()


@dataclass
class Simulated:
    """A pool in discrete time: what `decide` says is done, after a delay."""

    bounds: Bounds
    delay: float
    now: float = 0.0
    workers: dict[str, float] = field(default_factory=dict)  # when each was busy last
    coming: list[tuple[float, str]] = field(default_factory=list)
    started: int = 0
    stopped: int = 0

    def step(self, tasks: int, seconds: float = 1.0) -> None:
        self.now += seconds
        arrived = [name for when, name in self.coming if when <= self.now]
        self.coming = [(when, name) for when, name in self.coming if when > self.now]
        self.workers.update(dict.fromkeys(arrived, self.now))
        busy = sorted(self.workers)[:tasks]
        self.workers.update(dict.fromkeys(busy, self.now))
        load = PoolLoad(
            queued=max(0, tasks - len(self.workers)),
            processing=len(busy),
            seconds=float(tasks * 5),
            quiet=0.0 if tasks else self.now - max(self.workers.values(), default=0.0),
            workers=tuple(
                WorkerLoad(name, 1, self.now - when, 0, 0, sole=False) for name, when in self.workers.items()
            ),
        )
        decision = decide(load, len(self.coming), self.bounds)
        for _ in range(decision.wanted - len(self.workers) - len(self.coming)):
            self.coming.append((self.now + self.delay, f"w-{self.started:04}"))
            self.started += 1
        for name in decision.go:
            del self.workers[name]
            self.stopped += 1
        if decision.withdraw:
            del self.coming[-decision.withdraw :]


@given(high=st.integers(1, 20), busy=st.integers(1, 20), quiet=st.integers(0, 35), delay=st.floats(0, 30))
@settings(max_examples=50)
def test_a_sawtooth_load_does_not_flap(high: int, busy: int, quiet: int, delay: float):
    pool = Simulated(Bounds(maximum=20, target=5.0, idle=60.0), delay)
    for _ in range(8):
        for second in range(busy):
            pool.step(tasks=max(1, high * (second + 1) // busy))
        for _ in range(quiet):
            pool.step(tasks=0)
    # The teeth are shorter than a worker may be idle, so what was started for the first serves them all.
    assert pool.started <= high
    assert pool.stopped == 0
    for _ in range(200):
        pool.step(tasks=0)
    assert not pool.workers
    assert not pool.coming
