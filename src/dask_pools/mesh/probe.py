"""How large a packet may be on its way through a tunnel: found by sending some, not assumed.

A way whose outer packets are too large for some link, where the message that says so is lost, swallows large
packets and lets small ones through: everything seems to work, until somebody sends data. So echo requests of
many sizes are sent at once, none of which may be cut up, and the largest that is answered counts.

The answer to a large request is cut up if the other side has found that its own way is narrow. So this finds
the size for one direction, that of the requests, and the other side does the same for the other.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence
from ipaddress import IPv6Address

__all__ = ["LARGEST", "SIZES", "SMALLEST", "largest_packet"]

LARGEST = 1420
"""Of 1500 bytes on the link, an outer packet of IPv6 leaves 1420."""

SMALLEST = 1280
"""What IPv6 needs, and what is used where nothing larger is known to pass."""

SIZES = (LARGEST, *range(1408, SMALLEST - 1, -16))
"""WireGuard fills packets up to multiples of 16 bytes, but not beyond the size that the interface takes."""

_ECHO_REQUEST, _ECHO_REPLY = 128, 129
_HEADERS = 40 + 8
# Not in every version of the socket module.
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE = 23, 3


def largest_packet(
    target: IPv6Address, source: IPv6Address, sizes: Sequence[int] = SIZES, timeout: float = 1.0
) -> int | None:
    """Find the largest of some sizes that gets to a host.

    Parameters
    ----------
    target, source : IPv6Address
        The other host's, and this one's. The interface should take packets of the largest size.
    sizes : sequence of int
        Bytes, IPv6 header included.
    timeout : float
        Seconds to wait after the last request; each size is sent three times.

    Returns
    -------
    int or None
        None if nothing was answered at all.
    """
    identifier = os.getpid() & 0xFFFF ^ int(target) & 0xFFFF
    token = os.urandom(8)
    answered: set[int] = set()
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as one:
        # Ask the interface, not what is known about the way, how large a packet may be; and never cut it up.
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)
        one.bind((str(source), 0))
        for _ in range(3):
            for size in sizes:
                padding = bytes(size - _HEADERS - len(token))
                head = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identifier, size)
                try:
                    one.sendto(head + token + padding, (str(target), 0))
                except OSError:
                    continue  # no way there just now, or the interface itself takes no packet so large
            _listen(one, token, identifier, answered, timeout / 3)
            if max(sizes) in answered:
                break
    return max(answered, default=None)


def _listen(one: socket.socket, token: bytes, identifier: int, answered: set[int], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        one.settimeout(left)
        try:
            packet = one.recv(4096)
        except TimeoutError:
            return
        if len(packet) < 16 or packet[0] != _ECHO_REPLY:
            continue
        found, size = struct.unpack("!HH", packet[4:8])
        if found == identifier and packet[8:16] == token:
            answered.add(size)
