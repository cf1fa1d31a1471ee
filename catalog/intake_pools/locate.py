"""Which data centre hosts a path or URL, and why.

An entry's own word comes first, then the rules of a data-centres file. What neither knows is asked for
(`intake_pools.asking`), if that is switched on.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask_pools.errors import UnlocatedError
from dask_pools.pins import check_name
from intake_pools.urls import end_of, is_chain, is_local, public_url

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres, Rule

__all__ = ["Location", "locate"]


@dataclass(frozen=True)
class Location:
    """Where data lives, and how that is known.

    Attributes
    ----------
    data_centre : str
    evidence : str
        What decided, such as ``prefix /data/ecmwf/ (data-centres.yaml, line 3)``.
    rule : Rule or None
        The rule that decided, with its file and line; None if the entry itself, or the data centre, said so.
    runners_up : tuple of Rule
        Rules that match as well, but less well, the best of them first.
    known : DataCentres or None
        All the rules, if one decided; not sent to workers.
    """

    data_centre: str
    evidence: str
    rule: Rule | None = field(default=None, compare=False, repr=False)
    runners_up: tuple[Rule, ...] = field(default=(), compare=False, repr=False)
    known: DataCentres | None = field(default=None, compare=False, repr=False)

    @property
    def directory(self) -> str | None:
        """The directory that a rule names, of a glob the part without wild cards; None if it names none."""
        if self.rule is None or self.rule.kind not in ("prefix", "glob") or not is_local(self.rule.pattern):
            return None
        fixed = re.split(r"[*?\[]", self.rule.pattern, maxsplit=1)
        return self.rule.pattern if len(fixed) == 1 else f"{fixed[0].rpartition('/')[0]}/"

    def __getstate__(self) -> dict[str, Any]:
        # They are many, and it is the client that locates.
        return {**self.__dict__, "known": None}


def locate(
    url: str | os.PathLike[str],
    entry_word: str | None = None,
    data_centres: DataCentres | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    said_in: str = "data_centre of the entry",
    storage_options: Mapping[str, Any] | None = None,
) -> Location:
    """Find the data centre that hosts a path or URL.

    Parameters
    ----------
    url : str or path
    entry_word : str, optional
        The data centre that the entry itself states; it beats every rule. A name that the data-centres file
        does not have is taken for a mistake; where there is no such file, any proper name will do.
    data_centres : DataCentres, path, or mapping, optional
        The rules. By default those of the file that `dask.config` names (``pools.data-centres``).
    said_in : str, optional
        Where `entry_word` was said, for the evidence.
    storage_options : mapping, optional
        For fsspec; an endpoint in them says which object store is meant.

    Raises
    ------
    UnlocatedError
        If no rule matches, or the entry states a data centre that the rules do not know. The message lists
        what they know and suggests the nearest.
    DataCentresError
        If the data-centres file is wrong.
    """
    known = rules_of(data_centres)
    if entry_word is not None:
        try:
            check_name(entry_word)
        except ValueError as error:
            raise UnlocatedError(f"{said_in} is wrong: {error}") from None
        if known is not None and entry_word not in known.data_centres:
            near = difflib.get_close_matches(entry_word, known.names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnlocatedError(
                f"{said_in} states the data centre {entry_word!r}, which {known.origin} does not know.{hint} "
                f"It knows: {', '.join(known.names) or 'none'}."
            )
        return Location(entry_word, f"stated by {said_in}")

    name = os.fspath(url)
    if is_chain(name):
        name, storage_options = end_of(name, storage_options)
    if known is not None and (matching := known.matches(name, storage_options)):
        return Location(matching[0].data_centre, str(matching[0]), matching[0], tuple(matching[1:]), known)

    from dask_pools.places import place_of
    from intake_pools import asking

    if known is not None and (asked := asking.rule_of_region(name, known, storage_options)):
        rule, region = asked
        return Location(rule.data_centre, f"{rule}, of the region that the store names: {region}", rule)
    if answered := asking.probe(name, known, storage_options):
        return Location(answered[0].data_centre, str(answered[0]), answered[0], tuple(answered[1:]))

    shown = public_url(name)
    if known is None:
        raise UnlocatedError(
            f"No data centre is known for {shown}, since there is no data-centres file. State one with "
            "data_centre=, or name a file: `data_centres_file` in the catalogue's metadata, or "
            "dask.config.set({'pools.data-centres': 'data-centres.yaml'})."
        )
    if place_of(name).relative:
        raise UnlocatedError(
            f"{shown} is a relative path, which no prefix can match: it is relative to the working directory "
            f"of the workers. State where it lives with data_centre=. {known.origin} knows: "
            f"{', '.join(known.names) or 'none'}."
        )
    nearest = known.nearest(name)
    hint = f" The nearest is {nearest.pattern} of {nearest.data_centre}." if nearest else ""
    prefixes = "; ".join(f"{rule.pattern} ({rule.data_centre})" for rule in known.rules[:_SHOWN]) or "none"
    more = f"; and {len(known.rules) - _SHOWN} more" if len(known.rules) > _SHOWN else ""
    raise UnlocatedError(
        f"No data centre hosts {shown}. Prefixes in {known.origin}: {prefixes}{more}.{hint} Add a prefix "
        "there, or state the data centre with data_centre=."
    )


# More prefixes than this make a message that nobody reads.
_SHOWN = 20


def rules_of(
    data_centres: DataCentres | str | os.PathLike[str] | Mapping[str, Any] | None,
) -> DataCentres | None:
    """Get the rules that are given and those that `dask.config` names, merged; None if there are neither.

    Raises
    ------
    DataCentresError
        If they are wrong, or contradict each other.
    """
    from dask_pools import data_centres as rules

    own = rules.default()
    if data_centres is None:
        return own
    given = rules.load(data_centres)
    if own is None or own is given or own.origin == given.origin:
        return given
    for one, other, together in _merged:
        if other is own and (given is one or given is together):
            return together
    together = rules.merge([given, own])
    _merged.append((given, own, together))
    return together


# Entries of one catalogue are located one after the other.
_merged: deque[tuple[DataCentres, DataCentres, DataCentres]] = deque(maxlen=8)
