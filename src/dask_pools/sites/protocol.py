"""What a cluster and the agent of a site say to each other: one JSON object a line, both ways.

The cluster gives orders, the agent reports. Whatever comes in is checked against the models below before
anybody looks at it: an unknown kind, an unknown key or a value of another type is a `ProtocolError`. An order
that is to be answered has a number, and the answer has the same; a cluster that has lost the channel gives
its unanswered orders again, and the agent answers each number once.

The first line of each side says which version of the protocol it speaks, and can be read by every version.

This module is pure: it knows neither SSH nor sockets nor what a worker is.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from dask_pools.errors import PoolsError
from dask_pools.mesh.host import Offer
from dask_pools.mesh.plan import Router

__all__ = [
    "LIMIT",
    "STOPPING",
    "VERSION",
    "Beat",
    "Done",
    "Ended",
    "Failed",
    "Health",
    "Hello",
    "JoinMesh",
    "Joined",
    "Leaving",
    "Lines",
    "MakeKey",
    "Offered",
    "Order",
    "OtherProtocolError",
    "ProtocolError",
    "RaiseMesh",
    "Refused",
    "Report",
    "Shape",
    "SigningRequest",
    "StartWorker",
    "StopWorker",
    "TakeDown",
    "TrustKey",
    "Welcome",
    "encode",
    "read_order",
    "read_report",
]

VERSION = 1
"""Of this protocol; raised whenever an older side would misunderstand."""

LIMIT = 2**20
"""Bytes that a line may have."""

STOPPING = 30.0
"""Seconds that stopping workers may last at a site."""


class ProtocolError(PoolsError):
    """The other side said something that this protocol does not have."""


class OtherProtocolError(ProtocolError):
    """The other side speaks another version of this protocol.

    Attributes
    ----------
    protocol : int
    version : str
        Of its intake-pools.
    """

    def __init__(self, protocol: int, version: str) -> None:
        super().__init__(protocol, version)
        self.protocol, self.version = protocol, version

    def __str__(self) -> str:
        return (
            f"The other side has intake-pools {self.version}, which speaks version {self.protocol} of the "
            f"sites' protocol; here it is version {VERSION}."
        )


Number: TypeAlias = Annotated[int, Field(ge=0)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]
ClusterName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{8,64}$")]
Seconds: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes: TypeAlias = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    # Strict, so that "1" is never taken for 1; what one side does not know it must not pass over.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Order(_Model):
    """What is to be done, and answered with the same number."""

    number: Number

    @property
    def step(self) -> str:
        """What is done then, in words."""
        raise NotImplementedError


# Orders of the cluster


class Hello(_Model):
    """The cluster's first line on a channel."""

    kind: Literal["hello"] = "hello"
    protocol: int = VERSION
    version: str
    """Of intake-pools."""
    cluster: ClusterName
    beat: Seconds
    """Each side says something at least as often as this."""
    lost_after: Seconds
    """An agent that has not heard from its cluster for so long takes everything down and ends."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings of Dask for the workers, by their dotted names."""


class Beat(_Model):
    """The cluster is there."""

    kind: Literal["beat"] = "beat"


class Shape(_Model):
    """What a worker is to be like; the fields of `dask_pools.cluster.launchers.WorkerShape`."""

    threads: Annotated[int, Field(ge=1)] = 1
    memory_limit: Bytes | None = None
    directory: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    resources: dict[str, float] = Field(default_factory=dict)


class StartWorker(_Order):
    """Start a worker; the answer comes when it has joined the scheduler, or when it certainly will not."""

    kind: Literal["start-worker"] = "start-worker"
    name: Name
    scheduler: str
    """Its address."""
    shape: Shape
    launcher: Literal["host", "docker"] = "host"
    listen: str | None = None
    """Address that the worker listens on; None for the one that SSH came in by."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The launcher's own."""

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return f"starting worker {self.name}"


class StopWorker(_Order):
    """Stop a worker; the answer comes when no process of it is left. One that is not there is no error."""

    kind: Literal["stop-worker"] = "stop-worker"
    name: Name

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return f"stopping worker {self.name}"


class MakeKey(_Order):
    """Make a private key, which stays on the host, and ask for a certificate."""

    kind: Literal["make-key"] = "make-key"

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return "making a private key"


class TrustKey(_Order):
    """The certificate for the key that was made, and whom else to trust."""

    kind: Literal["trust-key"] = "trust-key"
    certificate: str
    """PEM."""
    authority: str
    """PEM."""

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return "taking the certificate"


class RaiseMesh(_Order):
    """Make this host's part of the cluster's mesh, and listen; the answer is what the others have to know."""

    kind: Literal["raise-mesh"] = "raise-mesh"
    router: Router

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return "bringing up the mesh"


class JoinMesh(_Order):
    """Go over to another plan of the mesh, or learn of more hosts."""

    kind: Literal["join-mesh"] = "join-mesh"
    router: Router
    offers: tuple[Offer, ...]
    """Of the other hosts."""
    preshared: dict[str, str] = Field(default_factory=dict, repr=False)
    """Keys that this host shares with others, by site."""
    wait: Seconds | None = None
    """For how long to wait until all of them can be talked to; None for not at all."""

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return "joining the mesh"


class TakeDown(_Order):
    """Take everything down and end."""

    kind: Literal["take-down"] = "take-down"

    @property
    def step(self) -> str:
        """What is done then, in words."""
        return "taking everything down"


# Reports of the agent


class Welcome(_Model):
    """The agent's first line on a channel."""

    kind: Literal["welcome"] = "welcome"
    protocol: int = VERSION
    version: str
    """Of intake-pools."""
    host: str
    user: str
    pid: Number
    address: str | None
    """Of the control host, as SSH came in; None if it did not."""
    log: str
    """Path of what it writes down, with what its workers say."""
    found: bool
    """Whether this agent has been attached to before."""


class Health(_Model):
    """How the site is; also says that the agent is there."""

    kind: Literal["health"] = "health"
    workers: tuple[Name, ...]
    """Those that have been started and not stopped."""
    free: Bytes
    """On the disk that workers spill to."""
    load: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Processes that run or want to, of the last minute."""


class Done(_Model):
    """An order has been carried out."""

    kind: Literal["done"] = "done"
    number: Number


class SigningRequest(_Model):
    """A key has been made; this asks for its certificate."""

    kind: Literal["signing-request"] = "signing-request"
    number: Number
    request: str
    """PEM."""


class Offered(_Model):
    """The host has its part of the mesh."""

    kind: Literal["offered"] = "offered"
    number: Number
    offer: Offer


class Joined(_Model):
    """The host knows the plan, and has waited for the others for as long as it was told to."""

    kind: Literal["joined"] = "joined"
    number: Number
    missing: dict[str, str] = Field(default_factory=dict)
    """By site: why it cannot be talked to, and what to do."""


class Failed(_Model):
    """An order has not been carried out, and left nothing behind."""

    kind: Literal["failed"] = "failed"
    number: Number
    step: str
    """What was being done."""
    reason: str
    command: str = ""
    said: str = ""
    """The last lines that the command wrote."""


class Ended(_Model):
    """A worker has ended without having been told to."""

    kind: Literal["ended"] = "ended"
    name: Name
    reason: str


class Refused(_Model):
    """There is no agent to talk to, or it does not want to talk; the channel is closed after this."""

    kind: Literal["refused"] = "refused"
    reason: str
    gone: bool = False
    """Whether there is no agent of this cluster, with nothing of what it had started."""


class Leaving(_Model):
    """The agent has taken everything down and ends."""

    kind: Literal["leaving"] = "leaving"
    reason: str


Order: TypeAlias = (
    Hello | Beat | StartWorker | StopWorker | MakeKey | TrustKey | RaiseMesh | JoinMesh | TakeDown
)
Report: TypeAlias = (
    Welcome | Health | Done | SigningRequest | Offered | Joined | Failed | Ended | Refused | Leaving
)

_ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
_REPORTS: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="kind")])


def encode(message: Order | Report) -> bytes:
    """Put a message into one line.

    Raises
    ------
    ProtocolError
        If it is too long, or has text that is no Unicode.
    """
    try:
        line = message.model_dump_json().encode() + b"\n"
    except ValueError as error:
        raise ProtocolError(f"{message.kind!r} cannot be written: {error}") from None
    if len(line) > LIMIT:
        raise ProtocolError(f"{message.kind!r} has {len(line)} bytes; a message may have {LIMIT}.")
    return line


def read_order(line: bytes) -> Order:
    """Read a line of the cluster.

    Raises
    ------
    OtherProtocolError
        If it is a greeting in another version of the protocol.
    ProtocolError
        If it is not an order.
    """
    order: Order = _read(line, _ORDERS, "hello")
    return order


def read_report(line: bytes) -> Report:
    """Read a line of an agent.

    Raises
    ------
    OtherProtocolError
        If it is a greeting in another version of the protocol.
    ProtocolError
        If it is not a report.
    """
    report: Report = _read(line, _REPORTS, "welcome")
    return report


def _read(line: bytes, models: TypeAdapter[Any], greeting: str) -> Any:
    _check_version(line, greeting)
    try:
        return models.validate_json(line)
    except ValidationError as error:
        complaints = error.errors(include_url=False, include_context=False, include_input=False)
    # Without the line itself: what a message carries need not be fit for a log.
    first = complaints[0]
    where = ".".join(str(part) for part in first["loc"])
    raise ProtocolError(f"This is not of the sites' protocol: {where + ': ' if where else ''}{first['msg']}.")


def _check_version(line: bytes, greeting: str) -> None:
    """Tell a greeting of another version, whatever else it may say, from one of this."""
    if greeting.encode() not in line[:4096]:
        return
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return
    if not isinstance(data, dict) or data.get("kind") != greeting:
        return
    spoken = data.get("protocol")
    if isinstance(spoken, int) and spoken != VERSION:
        raise OtherProtocolError(spoken, str(data.get("version", "of an unknown version")))


class Lines:
    """Lines from the pieces in which a channel delivers them."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Take a piece; give the lines that it completes, without their ends.

        Raises
        ------
        ProtocolError
            If a line becomes longer than `LIMIT`.
        """
        self._rest += piece
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        if any(len(line) >= LIMIT for line in (*lines, rest)):
            raise ProtocolError(f"A line of more than {LIMIT} bytes; the other side does not speak this.")
        return [bytes(line) for line in lines]
