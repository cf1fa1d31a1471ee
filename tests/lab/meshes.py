"""Meshes in the lab: what runs in the hands on control hosts, and what brings several of them up together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from hand import Hand
from network import Host, Network

from dask_pools.mesh.host import HostMesh, Offer, Status
from dask_pools.mesh.plan import Plan, Router, Site, make_plan

# In a hand: the meshes of that host, by interface.
_meshes: dict[str, HostMesh] = {}


def raised(router: Router) -> Offer:
    """Raise this host's part, in the hand."""
    mesh = HostMesh(router)
    offer = mesh.raise_()
    _meshes[router.interface] = mesh
    return offer


def resumed(interface: str) -> None:
    """Carry on with this host's part, in another hand."""
    _meshes[interface] = HostMesh.resume(interface)


def updated(router: Router, offers: Sequence[Offer], preshared: Mapping[str, str] | None = None) -> None:
    _meshes[router.interface].update(router, offers, preshared)


def waited(interface: str, timeout: float) -> None:
    _meshes[interface].wait(timeout)


def status(interface: str) -> Status:
    return _meshes[interface].status()


def lowered(interface: str) -> None:
    _meshes.pop(interface).lower()


def described(network: Network) -> list[Site]:
    """Sites of a plan that suits a network of the lab."""
    return [described_host(host) for host in network]


def described_host(host: Host) -> Site:
    link = host.at.link
    endpoint = None if link.reach == "nat" else host.at.reached
    return Site(host.name, link.reach, endpoint, link.port if link.reach == "port" else None)


@dataclass
class Mesh:
    """A mesh in the lab, as who makes the plan sees it."""

    network: Network
    plan: Plan
    hands: dict[str, Hand]
    offers: dict[str, Offer] = field(default_factory=dict)

    def raise_(self, names: Sequence[str] | None = None) -> None:
        """Raise the parts of these hosts."""
        names = list(names or self.plan)
        with ThreadPoolExecutor() as several:  # each imports Dask first, which takes its time
            made = several.map(lambda name: self.hands[name].call(raised, self.plan.router(name)), names)
            self.offers |= dict(zip(names, made, strict=True))

    def tell(self, preshared: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Tell every host the plan as it is now."""
        for name in self.plan.order:
            keys = (preshared or {}).get(name)
            self.hands[name].call(updated, self.plan.router(name), list(self.offers.values()), keys)

    def wait(self, timeout: float = 60) -> None:
        for name in self.plan:
            self.hands[name].call(waited, self.interface(name), timeout)

    def interface(self, name: str) -> str:
        return self.plan.router(name).interface

    def status(self, name: str) -> Status:
        return self.hands[name].call(status, self.interface(name))

    def lower(self, name: str) -> None:
        self.hands[name].call(lowered, self.interface(name))

    def ping(self, source: str, target: str, *options: str) -> str:
        """Ping through the mesh; raises if nothing comes back."""
        return self.network[source].run("ping", "-6", "-q", *options, str(self.plan.address(target)))

    def address(self, name: str) -> IPv6Address:
        return self.plan.address(name)


@contextmanager
def start_mesh(
    network: Network,
    sites: Sequence[Site] | None = None,
    seed: int = 1,
    patience: float = 60,
    hands: Mapping[str, Hand] | None = None,
) -> Iterator[Mesh]:
    """Join the control hosts of a network, some of them by particular hands, and take the mesh down."""
    plan = make_plan(sites or described(network), seed)
    with ExitStack() as stack:
        given = dict(hands or {})
        mesh = Mesh(network, plan, {host.name: given.get(host.name) or host.usual_hand for host in network})
        stack.callback(_lower_all, mesh)
        mesh.raise_()
        mesh.tell()
        mesh.wait(patience)
        yield mesh


def _lower_all(mesh: Mesh) -> None:
    for hand in mesh.hands.values():
        hand.call(_lower_of, mesh.plan.cluster)


def _lower_of(cluster: str) -> None:
    for interface in [one for one in _meshes if cluster in one]:
        lowered(interface)
