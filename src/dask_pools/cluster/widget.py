"""The display of a cluster in a notebook: what its pools have, and fields to give them more or fewer workers.

ipywidgets is optional, as for Dask's own clusters; without it a notebook shows the table alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta
from tornado.ioloop import PeriodicCallback

if TYPE_CHECKING:
    from dask_pools.cluster.pool_cluster import PoolCluster

__all__ = ["make_widget"]


def make_widget(cluster: PoolCluster) -> Any:
    """Make the widget of a cluster, which keeps itself up to date; None without ipywidgets."""
    try:
        from ipywidgets import HTML, Tab, VBox
    except ImportError:
        return None
    status = HTML(cluster._repr_html_())
    said = HTML("")

    def update() -> None:
        status.value = cluster._repr_html_()

    rows = [_row(cluster, pool, said, update) for pool in cluster.pools_of_its_own]
    tab = Tab()
    tab.children = [status, VBox([*rows, said])]
    tab.set_title(0, "Status")
    tab.set_title(1, "Scaling")

    def install() -> None:
        interval = parse_timedelta(dask.config.get("distributed.deploy.cluster-repr-interval"), default="ms")
        callback = PeriodicCallback(update, interval * 1000)
        cluster.periodic_callbacks["cluster-repr"] = callback
        callback.start()

    cluster.loop.add_callback(install)
    return tab


def _row(cluster: PoolCluster, pool: str, said: Any, update: Any) -> Any:
    """Make the fields of one pool."""
    from ipywidgets import Button, HBox, IntText, Label, Layout

    narrow = Layout(width="150px")
    count = IntText(len(cluster.pools[pool]), description="Workers", layout=narrow)
    scale = Button(description="Scale", layout=narrow)
    minimum = IntText(0, description="Minimum", layout=narrow)
    maximum = IntText(1, description="Maximum", layout=narrow)
    adapt = Button(description="Adapt", layout=narrow)

    def attempt(change: Any) -> None:
        try:
            change()
            said.value = ""
        except ValueError as error:
            # An exception of a button's callback would be seen by nobody.
            said.value = str(error)
        update()

    scale.on_click(lambda _: attempt(lambda: cluster.scale(pool, count.value)))
    adapt.on_click(
        lambda _: attempt(lambda: cluster.adapt(pool, minimum=minimum.value, maximum=maximum.value))
    )
    return HBox([Label(pool, layout=narrow), count, scale, minimum, maximum, adapt])
