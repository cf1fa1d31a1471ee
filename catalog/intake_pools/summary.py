"""Where each entry of a catalogue is, as rows, text and HTML, whichever version of Intake it is of.

Knows neither Intake nor how a catalogue is read.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from dask_pools.errors import EntryError, PoolsError
from intake_pools.entries import Entry

__all__ = ["CATALOGUE", "INTAKE", "Summarised"]

CATALOGUE, INTAKE = "catalogue", "Intake"
"""What an entry may be, if it is none of ours."""

_SHOWN = 60
"""Entries in a repr: of a hundred thousand nobody reads more, and each has to be located."""


class Summarised:
    """A catalogue that can say of each of its entries where it lives; nothing is opened for that."""

    def _described(self, name: str) -> Entry | str:
        """One entry as plain data; `CATALOGUE` or `INTAKE` if it is none of ours.

        Raises
        ------
        EntryError, UnlocatedError, KeyError
            As `plain_entry`.
        """
        raise NotImplementedError

    def _title(self) -> str:
        """Get what to call it."""
        raise NotImplementedError

    if TYPE_CHECKING:  # a catalogue of either version has these

        def __iter__(self) -> Iterator[str]: ...
        def __len__(self) -> int: ...

    def plain_entry(self, name: str) -> Entry:
        """Describe one of its entries as plain data, located, without opening it.

        Raises
        ------
        EntryError
            If it is not ours to open, or wrong.
        UnlocatedError
            If no data centre is known for it.
        KeyError
            If there is none of this name.
        """
        described = self._described(name)
        if isinstance(described, Entry):
            return described
        what = "a catalogue of its own" if described == CATALOGUE else "opened by Intake, in this process"
        raise EntryError(f"{name} is {what}; it lives in no data centre.")

    def summary(self) -> Iterator[tuple[str, str, str]]:
        """Say of each entry where it is.

        Yields
        ------
        name, place, detail : str
            `place` is the data centre (several with commas), ``catalogue``, ``Intake``, ``unlocated`` or
            ``unsupported``; `detail` what decided, or why not.
        """
        for name in self:
            try:
                described = self._described(name)
            except LookupError as error:
                yield name, "unlocated", str(error)
            except PoolsError as error:
                yield name, "unsupported", str(error)
            else:
                yield name, *_place(described)

    def __repr__(self) -> str:
        lines = [f"<catalogue {self._title()}: {len(self)} entries>"]
        lines += [f"  {name}: {place}" for name, place, _ in islice(self.summary(), _SHOWN)]
        return "\n".join(lines + ([f"  and {more} more"] if (more := len(self) - _SHOWN) > 0 else []))

    def _repr_html_(self) -> str:
        rows = [
            "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>"
            for row in islice(self.summary(), _SHOWN)
        ]
        if (more := len(self) - _SHOWN) > 0:
            rows.append(f"<tr><td colspan=3>and {more} more</td></tr>")
        head = "<tr><th>entry</th><th>data centre</th><th>decided by</th></tr>"
        return f"<b>{html.escape(self._title())}</b><table>{head}{''.join(rows)}</table>"

    # IPython would show Intake's JSON instead of our table.
    _ipython_display_ = None


def _place(described: Entry | str) -> tuple[str, str]:
    """Where an entry is, and what decided."""
    if isinstance(described, str):
        return described, "opened by Intake, where this process runs" if described == INTAKE else ""
    several = described.parts or described.replicas or (described,)
    places = dict.fromkeys(one.location.data_centre for one in several)
    evidence = dict.fromkeys(one.location.evidence for one in several)
    return ", ".join(places), "; ".join(evidence)
