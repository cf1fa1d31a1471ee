"""How fast bytes get from one host of the lab to another by TCP: functions for hands, and what moves them."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time

from hand import Hand


def serve(address: str) -> int:
    """Take in, in a thread, whatever is sent to this address, and confirm its end; the port."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)

    def take() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 20):
                pass
            connection.sendall(b".")

    threading.Thread(target=take, daemon=True).start()
    return int(listener.getsockname()[1])


def send(address: str, port: int, nbytes: int) -> float:
    """Send random bytes; seconds until the other side has confirmed to have them all."""
    block = os.urandom(1 << 16)
    with socket.create_connection((address, port), timeout=30) as connection:
        start = time.monotonic()
        for begin in range(0, nbytes, len(block)):
            connection.sendall(block[: nbytes - begin])
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1) != b".":
            raise ConnectionError("The other side did not confirm.")
        return time.monotonic() - start


def rate(sender: Hand, receiver: Hand, address: str, nbytes: int) -> float:
    """Mbit/s from one host to another's address."""
    port = receiver.call(serve, address)
    return nbytes * 8e-6 / sender.call(send, address, port, nbytes)
