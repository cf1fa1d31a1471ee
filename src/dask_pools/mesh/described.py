"""From the data-centres file to the sites of a mesh's plan. Makes no plan and knows no host."""

from __future__ import annotations

from collections.abc import Iterable

from dask_pools.data_centres import DataCentres
from dask_pools.errors import DataCentresError
from dask_pools.mesh.plan import Site
from dask_pools.network import SCHEDULER, OnNetwork

__all__ = ["described_sites"]


def described_sites(data_centres: DataCentres, names: Iterable[str] | None = None) -> list[Site]:
    """Get the sites that a data-centres file describes, as `dask_pools.mesh.plan.make_plan` takes them.

    Parameters
    ----------
    data_centres : DataCentres
    names : iterable of str, optional
        The data centres to join; by default all that have a ``site:``.

    Returns
    -------
    list of Site
        The scheduler's first, then the others in the order of `names` or of the file.

    Raises
    ------
    DataCentresError
        If one of them has no ``site:``, or two have the same control host.
    """
    known = {name: one.site for name, one in data_centres.data_centres.items()}
    hosts: dict[str, str] = {}
    sites = [_site(SCHEDULER, data_centres.scheduler, None)]
    for name in [name for name, site in known.items() if site is not None] if names is None else names:
        section = known.get(name)
        if section is None:
            raise DataCentresError(
                f"{data_centres.origin}: data centre {name!r} has no `site:`, so it cannot be joined to a "
                "mesh. It should read: site: {host: CONTROL-HOST}."
            )
        if (other := hosts.setdefault(section.host, name)) != name:
            raise DataCentresError(
                f"{data_centres.origin}: {other!r} and {name!r} have the same control host, {section.host}. "
                "On a mesh, a host can be of one site: join the two data centres, or give one another host."
            )
        sites.append(_site(name, section, section.host))
    return sites


def _site(name: str, section: OnNetwork, host: str | None) -> Site:
    endpoint = (section.endpoint or host) if section.reach != "nat" else None
    return Site(
        name, section.reach, endpoint, section.udp_port, section.relay, section.relays, section.preshared_key
    )
