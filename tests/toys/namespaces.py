"""Two hosts on this machine: two network namespaces with a cable between them, and a host name each."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Hosts:
    """Two hosts, ``n0`` and ``n1``, whose interfaces ``cable0`` and ``cable1`` are connected."""

    def __init__(self, prefix: str) -> None:
        self.names = [f"{prefix}-{number}" for number in range(2)]
        self.interfaces = ["cable0", "cable1"]

    def build(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ends = zip(self.interfaces, self.names, strict=True)
        one, two = [[end, "netns", name] for end, name in ends]
        ip("link", "add", *one, "type", "veth", "peer", "name", *two)
        for name, end, address in zip(self.names, self.interfaces, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def pull_the_cable(self) -> None:
        ip("-n", self.names[0], "link", "set", self.interfaces[0], "down")

    def start(self, number: int, command: list[str], **more: str) -> "subprocess.Popen[str]":
        """Start a program on one of the hosts; gloo uses the cable by default."""
        inside = ["unshare", "--uts", "sh", "-c", f'hostname n{number} && exec "$@"', "sh", *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.interfaces[number], **more}
        whole = ["ip", "netns", "exec", self.names[number], *inside]
        return subprocess.Popen(whole, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, iproute2 and unshare, to build network namespaces")
    made = Hosts(f"leam{os.getpid()}")
    try:
        made.build()
        if not Path("/var/run/netns", made.names[0]).exists():
            pytest.skip("network namespaces cannot be named here")
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"network namespaces cannot be built here: {error.stderr.strip()}")
    yield made
    made.remove()
