"""The lab's own network is what the other tests take it for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from network import Host, Network
from rates import rate

from leftovers import eventually

pytestmark = pytest.mark.lab


HEAR = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
one.recv(100)
"""


def gets_through(sender: Host, receiver: Host, port: int) -> bool:
    """Whether datagrams from one host reach another's port."""
    command = [*receiver.inside, sys.executable, "-I", "-S", "-c", HEAR, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listening:
        try:
            assert listening.stdout.readline() == "ready\n"
            sender.run("bash", "-c", f"for n in 1 2 3; do echo >/dev/udp/{receiver.at.reached}/{port}; done")
            # It takes 10 ms to get there.
            return eventually(lambda: listening.poll() is not None, 2)
        finally:
            listening.kill()


def test_a_site_has_files_of_its_own_and_sees_no_others(network: Network):
    (network["ecmwf"].from_outside("/srv/data") / "forecast").write_text("rain")
    assert network["ecmwf"].run("cat", "/srv/data/forecast") == "rain"
    for name in ("client", "eumetsat"):
        assert "forecast" not in network[name].run("ls", "/srv/data").split()
    assert not Path("/srv/data").exists()
    ps = network["eumetsat"].run("ps", "ax")
    assert "keeper.py eumetsat" in ps
    assert "keeper.py ecmwf" not in ps


def test_ssh_gets_in_everywhere_as_root_and_as_an_ordinary_user(network: Network):
    client = network["client"]
    for name in ("ecmwf", "eumetsat"):
        assert client.run("ssh", name, "hostname; id -u").split() == [name, "0"]
        assert client.run("ssh", f"scientist@{name}", "hostname; id -un").split() == [name, "scientist"]
    find = "'import importlib.util as i; print(i.find_spec(\"dask_pools\") is not None)'"
    assert client.run("ssh", "scientist@ecmwf", "python", "-c", find) == "True\n"


def test_datagrams_get_in_where_they_should_and_nowhere_else(network: Network, walled: Network):
    assert gets_through(network["client"], network["ecmwf"], 6000)
    assert not gets_through(network["ecmwf"], network["eumetsat"], 6000)
    assert gets_through(walled["client"], walled["ecmwf"], walled["ecmwf"].at.link.port)
    assert not gets_through(walled["client"], walled["ecmwf"], 6000)


def test_links_are_as_slow_as_they_are_said_to_be_and_count_what_passes(network: Network):
    client, ecmwf = network["client"], network["ecmwf"]
    times = client.run("ping", "-c3", "-i0.2", "-q", "ecmwf").rpartition("=")[2]
    assert float(times.split("/")[0]) >= 20
    before = client.sent(), ecmwf.received()
    nbytes = 3_000_000
    assert rate(client.hand(), ecmwf.hand(), ecmwf.at.host, nbytes) < 100
    sent, received = client.sent() - before[0], ecmwf.received() - before[1]
    assert nbytes < received <= sent < 1.2 * nbytes


def test_an_unplugged_site_is_silent_and_comes_back(network: Network):
    client, eumetsat = network["client"], network["eumetsat"]
    eumetsat.unplug()
    with pytest.raises(subprocess.CalledProcessError):
        eumetsat.run("ping", "-c1", "-W1", "-q", "ecmwf")
    assert "1 received" in client.run("ping", "-c1", "-W5", "-q", "ecmwf")
    eumetsat.plug()
    assert "1 received" in eumetsat.run("ping", "-c1", "-W5", "-q", "ecmwf")


def test_a_capture_has_what_passes_the_link(network: Network):
    ecmwf = network["ecmwf"]
    capture = ecmwf.capture()
    network["client"].run("ping", "-c1", "-q", "ecmwf")
    assert eventually(lambda: sum(packet[9] == socket.IPPROTO_ICMP for packet in capture.packets) >= 2)
    capture.stop()


KILLED = """
import json, sys, time
import psutil
from network import start_network

with start_network() as network:
    processes = psutil.Process().children(recursive=True)
    print(json.dumps([[one.pid, one.create_time()] for one in processes]), flush=True)
    time.sleep(600)
"""


def lives(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_killed_outright_it_leaves_nothing_and_starts_again(network: Network, tmp_path: Path):
    before = os.listdir("/run"), os.listdir("/sys/class/net"), os.listdir("/srv")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        ) as process:
            try:
                processes = json.loads(process.stdout.readline())
            finally:
                process.send_signal(signal.SIGKILL)
        # Three hosts and three gates, each below an unshare; links; sshd.
        assert len(processes) >= 18
        assert eventually(lambda processes=processes: not any(lives(*one) for one in processes), 30)
        assert (os.listdir("/run"), os.listdir("/sys/class/net"), os.listdir("/srv")) == before
    assert not list(tmp_path.iterdir())
