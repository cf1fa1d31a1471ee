"""Where a mesh can be made without root: in a user, network and mount name space of an ordinary user.

In there the user is root of a network of its own, as in a rootless container; the way out is `pasta`
(Debian's package passt), which hands on what is sent as that user's own datagrams. Whatever is to use the
mesh, and whoever makes it, has to run inside: so one command is the beginning of all. It knows nothing of the
mesh itself.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import secrets
import shutil
import socket
import struct
import subprocess
from contextlib import suppress

from dask_pools.errors import MeshError
from dask_pools.mesh.wireguard import PATIENCE, TUN, check_tun, run

__all__ = ["can_make_interfaces", "entry"]

_TUNSETIFF, _IFF_TUN = 0x400454CA, 0x0001

# What this user's processes see in /run stays there, but for /run/wireguard, which wireguard-go wants to
# write to and which would otherwise be the host's. The shell stays, to bury orphans: it is the first process
# of a process name space, in which /proc has to be its own.
_SETTLE = """
new=$(mktemp -d)
mount -t tmpfs -o mode=755 dask-pools "$new"
mkdir "$new/.host" "$new/wireguard"
mount --rbind /run "$new/.host"
for one in /run/*; do
    [ "$one" = /run/wireguard ] || [ ! -e "$one" ] || ln -s "/run/.host/${one#/run/}" "$new/"
done
mount --rbind "$new" /run
umount -l "$new"
rmdir "$new"
mount -t proc proc /proc
ip link set dev lo up
env --default-signal=INT -- "$@"
exit $?
"""


def can_make_interfaces() -> bool:
    """Whether this process may make network interfaces where it runs; found by trying."""
    name = f"dp{secrets.token_hex(5)}"
    with suppress(OSError):
        tun = os.open(TUN, os.O_RDWR)
        try:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN))
            return True
        finally:
            os.close(tun)
    with suppress(MeshError):
        run(["ip", "link", "add", "dev", name, "type", "wireguard"])
        run(["ip", "link", "delete", "dev", name])
        return True
    return False


def entry(udp_port: int | None = None) -> tuple[str, ...]:
    """Get the beginning of a command that runs the rest of it where this user can make a mesh.

    Nothing outside is changed. Inside, this user is called root; files are as before. When the command ends
    or is ended, all that was started inside ends.

    Parameters
    ----------
    udp_port : int, optional
        UDP port that comes in from outside, above 1023; None if nothing needs to (`reach: nat`).

    Returns
    -------
    tuple of str
        Empty if that is where this process is already.

    Raises
    ------
    MeshError
        If there is no such place; the message says what is missing.
    """
    if can_make_interfaces():
        return ()
    check_tun()
    who = f"{getpass.getuser()} on {socket.gethostname()}"
    otherwise = "or, for hosts that reach each other directly, write `network: tls` in the data-centres file"
    if shutil.which("pasta") is None:
        raise MeshError(
            f"{who} may not make network interfaces, and `pasta`, with which one can do without, is not "
            f"installed: apt-get install --no-install-recommends passt; {otherwise}."
        )
    if udp_port is not None and udp_port < 1024:
        raise MeshError(f"{who} may not listen on UDP port {udp_port}: without root, state one above 1023.")
    command = (
        # pasta of 2023 fails where SIGPIPE is ignored, as it is by Python and what that starts.
        # Ctrl-C is for the command inside, which may have something to take down before all of it ends.
        *("env", "--default-signal=PIPE", "--ignore-signal=INT"),
        *("pasta", "--config-net", "--foreground", "--quiet", "--no-map-gw"),
        # Nothing else comes in, and nothing of this host's own is reached from inside.
        *("--tcp-ports", "none", "--udp-ports", str(udp_port or "none")),
        *("--tcp-ns", "none", "--udp-ns", "none", "--"),
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"),
        *("sh", "-euc", _SETTLE, "sh"),
    )
    try:
        tried = subprocess.run(
            [*command, "sh", "-c", f"exec 3<>{TUN}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        said = tried.stderr.strip().splitlines()
        if tried.returncode == 0:
            return command
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    raise MeshError(
        f"{who} may not make network interfaces, and `pasta`, with which one can do without, failed: "
        f"{' '.join(said[-3:]) or 'it said nothing'}. Are user name spaces forbidden here (sysctl "
        "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or may only root open "
        f"{TUN}? Ask who runs the host, {otherwise}."
    )
