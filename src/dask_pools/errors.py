"""Every exception that a caller of this project may want to handle.

Each class is one situation with one remedy. Their arguments are plain values, so that they cross from a
worker or the scheduler to the user unchanged; the message is put together from them.
"""

from __future__ import annotations

from collections.abc import Iterable

from dask.utils import format_bytes

__all__ = [
    "DataCentresError",
    "DataChangedError",
    "EntryError",
    "HostKeyError",
    "MeshError",
    "MisplacedTaskError",
    "MixedPoolsError",
    "PoolUnavailableError",
    "PoolsError",
    "ResidencyError",
    "SiteError",
    "TransferBudgetError",
    "UnlocatedError",
    "UnreadableError",
    "UnsupportedSettingError",
    "VersionMismatchError",
]


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"


class PoolsError(Exception):
    """Base class of every exception of this project."""


class MisplacedTaskError(PoolsError):
    """A chunk was about to be read or written on a worker that is not of the pool that holds it.

    Attributes
    ----------
    entry, chunk, worker, pool : str
        What it is of, which part, where it was about to be accessed, and where it should have been.
    """

    def __init__(self, entry: str, chunk: str, worker: str, pool: str) -> None:
        super().__init__(entry, chunk, worker, pool)
        self.entry, self.chunk, self.worker, self.pool = entry, chunk, worker, pool

    def __str__(self) -> str:
        return (
            f"{self.chunk} of {self.entry} lives in pool {self.pool!r}, but was about to be accessed on "
            f"worker {self.worker}, which is not of that pool. The pin was lost on the way: call "
            "dask_pools.propagate_pools() before computing, and leave `pools.propagate` on."
        )


class DataChangedError(PoolsError):
    """The data is not what it was when the entry was opened, or is another data centre's of the same name.

    Attributes
    ----------
    entry, chunk, expected, found : str
    """

    def __init__(self, entry: str, chunk: str, expected: str, found: str) -> None:
        super().__init__(entry, chunk, expected, found)
        self.entry, self.chunk, self.expected, self.found = entry, chunk, expected, found

    def __str__(self) -> str:
        return (
            f"{self.chunk} of {self.entry} cannot be read: version {self.expected} was opened, version "
            f"{self.found} is there now. Open the entry again."
        )


class UnreadableError(PoolsError):
    """A chunk could not be had from the store that holds it, which refused, broke off or did not answer.

    What the libraries raise then may have credentials in it, and often does not survive the way to the user.

    Attributes
    ----------
    entry, chunk, reason : str
        What it is of, which part, and what happened, without secrets.
    """

    def __init__(self, entry: str, chunk: str, reason: str) -> None:
        super().__init__(entry, chunk, reason)
        self.entry, self.chunk, self.reason = entry, chunk, reason

    def __str__(self) -> str:
        return f"{self.chunk} of {self.entry} cannot be read: {self.reason.rstrip('.')}."


class PoolUnavailableError(PoolsError):
    """A pool has no workers, and none came.

    Attributes
    ----------
    pool : str
    existing : tuple of str
        The pools that have workers.
    reason : str
        Why no worker came, and what to type.
    """

    def __init__(self, pool: str, existing: Iterable[str], reason: str) -> None:
        existing = tuple(sorted(existing))
        super().__init__(pool, existing, reason)
        self.pool, self.existing, self.reason = pool, existing, reason

    def __str__(self) -> str:
        return (
            f"Pool {self.pool!r} has no workers. {self.reason} Pools with workers: {_names(self.existing)}."
        )


class MixedPoolsError(PoolsError, ValueError):
    """One pool was expected, several were found.

    Attributes
    ----------
    what : str
    pools : tuple of str
    """

    def __init__(self, what: str, pools: Iterable[str]) -> None:
        pools = tuple(sorted(pools))
        super().__init__(what, pools)
        self.what, self.pools = what, pools

    def __str__(self) -> str:
        return f"{self.what} lies in several pools: {_names(self.pools)}."


class ResidencyError(PoolsError):
    """What a dataset holds must not leave its data centre, but is needed in another, or by the client.

    Attributes
    ----------
    variable, pool, operation : str
        What must stay, where; what reads it.
    needed_in : str or None
        Where that has to run; None if the client asked for it.
    """

    def __init__(self, variable: str, pool: str, operation: str, needed_in: str | None) -> None:
        super().__init__(variable, pool, operation, needed_in)
        self.variable, self.pool = variable, pool
        self.operation, self.needed_in = operation, needed_in

    def __str__(self) -> str:
        if self.needed_in is None:
            return (
                f"{self.variable!r} must stay in pool {self.pool!r}, but its values were asked for by the "
                "client, as they are. Ask for something reduced (a mean, a selection), or keep it in the "
                f"pool with persist(). If this client runs in {self.pool!r}: "
                f"dask.config.set({{'pools.here': {self.pool!r}}})."
            )
        return (
            f"{self.variable!r} must stay in pool {self.pool!r}, but {self.operation!r} reads it in pool "
            f"{self.needed_in!r}. Reduce it in its own pool first (a mean, a selection), let what it is "
            f"combined with come to {self.pool!r}, or take away the pin that ties {self.operation!r} to "
            f"{self.needed_in!r}."
        )


class TransferBudgetError(PoolsError):
    """A computation would move more bytes between pools than it may; none of its tasks has run.

    Attributes
    ----------
    crossed, budget : int
        Bytes.
    largest : tuple of str
        What would cross, the largest first.
    """

    def __init__(self, crossed: int, budget: int, largest: Iterable[str]) -> None:
        largest = tuple(largest)
        super().__init__(crossed, budget, largest)
        self.crossed, self.budget, self.largest = crossed, budget, largest

    def __str__(self) -> str:
        what = "; ".join(self.largest)
        return (
            f"This would move {format_bytes(self.crossed)} between pools, and the budget is "
            f"{format_bytes(self.budget)}. The most: {what}. dask_pools.explain(...) tells all of it. To "
            "compute it all the same: with dask.config.set({'pools.transfer-budget': None})."
        )


class UnsupportedSettingError(PoolsError):
    """A Dask setting is in force that defeats pins."""


class VersionMismatchError(PoolsError):
    """The scheduler or a worker lacks this package, or has another version of it.

    Attributes
    ----------
    found : dict of str to str
        What each offending host has: a version, or "not installed".
    version : str
        What the client has.
    """

    def __init__(self, found: dict[str, str], version: str) -> None:
        super().__init__(found, version)
        self.found, self.version = found, version

    def __str__(self) -> str:
        hosts = "; ".join(f"{host}: {what}" for host, what in sorted(self.found.items()))
        return (
            f"The client has intake-pools {self.version}, but these have not: {hosts}. "
            f"On each of them: pip install intake-pools=={self.version}"
        )


class SiteError(PoolsError):
    """Something did not work at the control host of a site.

    Attributes
    ----------
    host, step, reason : str
        Where, what was being done, why that failed and what to do.
    command : str
        What was run there, or nothing.
    said : str
        The last lines that the command wrote.
    """

    def __init__(self, host: str, step: str, reason: str, command: str = "", said: str = "") -> None:
        super().__init__(host, step, reason, command, said)
        self.host, self.step, self.reason, self.command, self.said = host, step, reason, command, said

    def __str__(self) -> str:
        command = f"\nCommand: {self.command}" if self.command else ""
        said = (
            "\nIt said:\n" + "\n".join(f"    {line}" for line in self.said.splitlines()) if self.said else ""
        )
        return f"Control host {self.host}, {self.step}: {self.reason.rstrip('.')}.{command}{said}"


class HostKeyError(SiteError):
    """A control host showed a key that is not known to be its own; nothing was sent to it.

    Attributes
    ----------
    fingerprint : str
        Of the key that it showed, as `ssh` writes it.
    """

    def __init__(self, host: str, step: str, reason: str, fingerprint: str) -> None:
        super().__init__(host, step, reason)
        self.args = (host, step, reason, fingerprint)
        self.fingerprint = fingerprint


class MeshError(PoolsError):
    """The network of a cluster cannot be made, or does not reach a site; the message says what to do."""


class DataCentresError(PoolsError, ValueError):
    """A data-centres file or setting is wrong; the message names the file, the key and what is allowed."""


class UnlocatedError(PoolsError, LookupError):
    """No data centre is known for a URL or path."""


class EntryError(PoolsError):
    """An entry could not be opened where its data lives; the message says what was tried and found."""
