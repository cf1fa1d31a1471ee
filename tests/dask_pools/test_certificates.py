"""Certificates of a cluster: whoever has one of its authority is let in, nobody else."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from distributed import Security

from dask_pools.sites.certificates import Authority, CertificateError, make_key


def security(directory: Path, authority: Authority, signer: Authority) -> Security:
    """What a host has that got its certificate from `signer` and trusts `authority`."""
    directory.mkdir()
    key = make_key("host")
    assert "PRIVATE" not in key.request
    assert "PRIVATE" not in repr(key)
    files = {
        "key": key.private,
        "cert": signer.sign(key.request).encode(),
        "ca": authority.certificate.encode(),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    own = {"key": str(directory / "key"), "cert": str(directory / "cert")}
    roles = {f"tls_{role}_{part}": path for role in ("worker", "scheduler") for part, path in own.items()}
    return Security(require_encryption=True, tls_ca_file=str(directory / "ca"), **roles)


def shake_hands(server: Security, client: Security) -> None:
    """Connect as Dask does."""
    ours, theirs = socket.socketpair()
    listening = server.get_listen_args("scheduler")["ssl_context"]

    def serve() -> None:
        try:
            with listening.wrap_socket(theirs, server_side=True) as there:
                there.sendall(there.recv(5))
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.get_connection_args("worker")["ssl_context"].wrap_socket(ours) as here:
            here.sendall(b"hello")
            if here.recv(5) != b"hello":
                raise ConnectionError
    finally:
        ours.close()
        thread.join()


def test_hosts_of_one_cluster_trust_each_other_and_no_others(tmp_path: Path):
    mine, foreign = Authority(), Authority()
    first, second = (security(tmp_path / name, mine, mine) for name in ("first", "second"))
    shake_hands(first, second)
    stranger = security(tmp_path / "stranger", mine, foreign)
    with pytest.raises(OSError):  # noqa: PT011  (ssl.SSLError, or the connection is closed)
        shake_hands(first, stranger)
    with pytest.raises(ssl.SSLError):
        shake_hands(stranger, first)


BROKEN = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize("request_", ["", "no request", BROKEN])
def test_what_is_no_request_is_refused(request_: str):
    with pytest.raises(CertificateError):
        Authority().sign(request_)
