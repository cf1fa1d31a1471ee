"""A wire that takes its time: what is sent into a tun device comes out of it again, a little later.

    python delay_relay.py NAME SECONDS

Makes the device, says ``ready``, and carries packets until it is killed. In user space because not every
kernel has netem. Knows nothing of what it carries, nor from where to where; it limits no rate.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# Bytes. Without offloading, a tun device has no packets larger than its MTU, which is 1500.
LARGEST = 2048
TICK = 0.001
"""Seconds between two looks at what has come. To be woken for each packet would cost more than carrying it,
and the wire is to leave the processors to what is measured. Packets are that much late at most, twice."""


def tun(name: str) -> int:
    """Make a tun device; its file descriptor, which does not block."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def carry(fd: int, delay: float) -> None:
    """Carry packets, for ever."""
    # With when each is due. One delay for all: the first in is first out.
    waiting: deque[tuple[float, bytes]] = deque()
    poll = select.epoll()
    poll.register(fd, select.EPOLLIN)
    while True:
        if waiting:
            time.sleep(TICK)
        else:
            poll.poll()
        now = time.monotonic()
        due = now + delay
        try:
            while True:
                waiting.append((due, os.read(fd, LARGEST)))
        except BlockingIOError:
            pass
        except OSError:  # the device is not up yet
            time.sleep(TICK)
        while waiting and waiting[0][0] <= now:
            with suppress(OSError):
                os.write(fd, waiting.popleft()[1])


def main() -> None:
    name, delay = sys.argv[1:]
    with suppress(OSError):
        os.nice(-15)  # a wire is as fast as it is, however busy the machine
    fd = tun(name)
    print("ready", flush=True)
    carry(fd, float(delay))


if __name__ == "__main__":
    main()
