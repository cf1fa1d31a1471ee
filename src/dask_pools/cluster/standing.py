"""How one pool of a cluster stands: what failed, when to try again or to give up, and the hours it has used.

Plain data and a few rules. It knows neither workers nor clusters, and what time it is it is told, in seconds
of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from dask_pools.cluster.adapting import Bounds

__all__ = ["Standing"]

# Seconds for which a failed start is reported. Long enough for everyone who waits to see it; short enough for
# the next who asks to get a new attempt.
REPORT_FAILURE = 5.0

# Failures in a row after which a pool is given up, and the longest pause between two attempts, in seconds.
ATTEMPTS = 4
LONGEST_PAUSE = 60.0

# Seconds after which failures are forgotten, and a pool that adapts tries anew what was given up.
FORGET_FAILURES = 300.0


@dataclass
class Standing:
    """What is remembered of a pool besides its workers."""

    failures: int = 0
    """In a row."""
    latest: float = 0.0
    """When something failed last."""
    retry: float = 0.0
    """When the next attempt may be made."""
    reason: str | None = None
    """What failed last."""
    failed: float | None = None
    """When it was given up, until somebody asks again."""
    proven: bool = False
    """Whether a worker has joined since it was asked for anew."""
    seconds: float = 0.0
    """How long its workers have run, added up."""
    spent: bool = False
    """Whether it has used up its hours."""
    bounds: Bounds | None = None
    """If it adapts, how far."""

    def ask_anew(self) -> None:
        """Forget what failed: somebody asks again."""
        if not self.spent:
            self.failures, self.retry = 0, 0.0
            self.failed, self.reason = None, None
            self.proven = False

    def fail(self, reason: str, now: float, *, others: bool) -> bool:
        """Take note that a worker did not start or did not last; whether to try again, from `retry` on.

        Parameters
        ----------
        reason : str
        now : float
        others : bool
            Whether the pool has other workers, or is starting some.
        """
        if now - self.latest > FORGET_FAILURES:
            self.failures = 0
        self.latest, self.reason = now, reason
        if now >= self.retry:
            # Several workers that fail together are one failure.
            self.failures += 1
            self.retry = now + min(LONGEST_PAUSE, 2.0 ** (self.failures - 1))
        if self.failures < ATTEMPTS and (others or self.proven):
            return True
        self.give_up(reason, now)
        return False

    def give_up(self, reason: str, now: float) -> None:
        """Leave it alone until somebody asks for it."""
        self.reason, self.failed = reason, now
        self.proven = False

    def spend(self, hours: float | None, now: float) -> bool:
        """Give it up if it has used more than these hours; whether it just has."""
        if hours is None or self.spent or self.seconds <= 3600 * hours:
            return False
        self.spent = True
        self.give_up(f"its {hours:g} hours of workers are used up (max_hours)", now)
        return True

    def refuses(self, now: float) -> bool:
        """Whether it was given up so recently that who asks now is to be told, instead of a new attempt."""
        return self.failed is not None and (self.spent or now - self.failed < REPORT_FAILURE)

    def rests(self, now: float) -> bool:
        """Whether it was given up so recently that it does not try anew by itself."""
        return self.failed is not None and (self.spent or now - self.failed < FORGET_FAILURES)
