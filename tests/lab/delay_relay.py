"""A wire that takes its time: what goes in at one tun device comes out at another, a little later.

    python delay_relay.py NAME NAME SECONDS

Makes both devices, says ``ready``, and carries packets until it is killed. They may be moved to other network
name spaces meanwhile. In user space because not every kernel has netem. Knows nothing of what it carries; it
limits no rate: that is the devices' own queues' business.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LARGEST = 65535


def tun(name: str) -> int:
    """Make a tun device; its file descriptor, which does not block."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def carry(one: int, other: int, delay: float) -> None:
    """Carry packets both ways, for ever."""
    now = time.monotonic
    # What came in where, and when it is due at the other end. One delay for all: the first in is first out.
    waiting: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}
    ends = {one: other, other: one}
    poll = select.epoll()
    for fd in ends:
        poll.register(fd, select.EPOLLIN)
    while True:
        due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
        for fd, _ in poll.poll(None if due is None else max(0.0, due - now())):
            queue = waiting[fd]
            try:
                while True:
                    queue.append((now() + delay, os.read(fd, LARGEST)))
            except BlockingIOError:
                pass
            except OSError:  # the device is down: what is in it is lost, as on a wire that is cut
                time.sleep(0.001)
        for fd, queue in waiting.items():
            while queue and queue[0][0] <= now():
                try:
                    os.write(ends[fd], queue.popleft()[1])
                except OSError:
                    continue  # likewise


def main() -> None:
    first, second, delay = sys.argv[1:]
    ends = tun(first), tun(second)
    print("ready", flush=True)
    carry(*ends, float(delay))


if __name__ == "__main__":
    main()
