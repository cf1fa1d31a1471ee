"""`make lab`: the three sites of the lab to play in, with a prompt; gone when the prompt is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from layout import observations, predictions
from network import missing, start_network
from topology import DELAY

from intake_pools.shipped import shipped

WELCOME = """
{sites}

This prompt is at the site "client". `ssh NAME` is another site, as root; `ssh scientist@NAME` as an ordinary
user. /srv/data is each site's own: ecmwf has the predictions and eumetsat the observations of weather.yaml,
which lies here. `dask pools up weather-data-centres.yaml` makes a cluster of both. Leave with `exit`, and all
of it is gone.
"""
SAID = {
    "open": "public address, no firewall",
    "nat": "private address, connections go out only (SSH gets in)",
    "port": "public address, only UDP port {port} gets in (and SSH)",
}


def main() -> int:
    if why := missing():
        print(f"No lab: {why}", file=sys.stderr)
        return 1
    with start_network() as network:
        client, *_ = network
        for name in ("weather.yaml", "weather-data-centres.yaml"):
            client.from_outside(f"/srv/{name}").write_bytes(shipped(name).read_bytes())
        for file, data in (
            ("ecmwf/predictions.nc", predictions()),
            ("eumetsat/observations.nc", observations()),
        ):
            path = network[file.split("/")[0]].from_outside(f"/srv/data/{file}")
            path.parent.mkdir()
            data.to_netcdf(path)
        sites = "\n".join(
            f"{host.name:10} {host.at.host:15} {SAID[host.at.link.reach].format(port=host.at.link.port)}; "
            f"{host.at.link.rate:g} Mbit/s, {DELAY * 1000:g} ms to any other"
            for host in network
        )
        print(WELCOME.format(sites=sites))
        # Ctrl-C is for what runs at the prompt.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        shell = ["env", r"PS1=\h:\w\$ ", "bash", "--norc", "-i"]
        return subprocess.run([*client.inside, *shell], env=client.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
