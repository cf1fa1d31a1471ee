"""What an entry can do once it is plain data, whichever version of Intake shows it.

Knows neither Intake nor how an entry is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from intake_pools.entries import Entry
    from intake_pools.locate import Location

__all__ = ["Located"]


class Located:
    """An entry that is opened in its pool; whoever inherits this says what it is as plain data."""

    def _resolved(self, *args: Any, **kwargs: Any) -> Entry:
        """Everything about it as plain data."""
        raise NotImplementedError

    @property
    def data_centre(self) -> str:
        """Name of the data centre that hosts it; nothing is opened to find out.

        Raises
        ------
        UnlocatedError
            If no data centre is known for it.
        """
        return self._resolved().location.data_centre

    @property
    def location(self) -> Location:
        """The data centre that hosts it, and how that is known."""
        return self._resolved().location

    def to_dask(self, data_centre: str | None = None) -> xr.Dataset:
        """Open it in its pool.

        Parameters
        ----------
        data_centre : str, optional
            Which replica to open, of an entry that has several.

        Returns
        -------
        xarray.Dataset
            Lazy; its chunks are read in the pool.

        Raises
        ------
        EntryError, UnlocatedError, PoolUnavailableError
            As `intake_pools.opening.open_entry` and `intake_pools.locate.locate` say.
        """
        from intake_pools.opening import open_entry

        return open_entry(self._resolved(), data_centre)

    def to_datatree(self, data_centre: str | None = None) -> xr.DataTree:
        """Open all groups of it in its pool, as `intake_pools.opening.open_tree` does.

        Parameters
        ----------
        data_centre : str, optional
            Which replica to open, of an entry that has several.
        """
        from intake_pools.opening import open_tree

        return open_tree(self._resolved(), data_centre)
