"""Two nodes on one machine: network namespaces with a cable between them.

They need root, and the commands `unshare`, `nsenter` and `ip`. A namespace lasts as long as the process that holds it.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

INTERFACE = "eth0"


class NoNodes(Exception):
    """This machine lets us make no network namespaces."""


class Node:
    """One node; the file system is that of the machine."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stderr=subprocess.PIPE, text=True)
        own, its = (Path(f"/proc/{name}/ns/net") for name in ("self", self._holder.pid))
        while self._holder.poll() is None and os.readlink(its) == os.readlink(own):
            time.sleep(0.01)
        if self._holder.poll() is not None:
            raise NoNodes(self._holder.stderr.read())

    @property
    def pid(self) -> int:
        """The process whose namespace it is."""
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        """What a command on this node begins with."""
        return ["nsenter", "--net", "--target", str(self.pid)]

    def ip(self, *words: str) -> None:
        """Run `ip` on it.

        Raises:
            NoNodes: it failed.
        """
        ended = subprocess.run([*self.enter, "ip", *words], capture_output=True, text=True)
        if ended.returncode:
            raise NoNodes(f"ip {' '.join(words)}: {ended.stderr}")

    def end(self) -> None:
        """Give it back. What still runs there has no network from now on."""
        self._holder.kill()
        self._holder.wait()
        self._holder.stderr.close()


class Cluster:
    """Two nodes, connected; a context manager.

    Raises:
        NoNodes: the machine does not allow it; the message says why.
    """

    ADDRESSES = ("10.77.0.1", "10.77.0.2")

    def __enter__(self) -> "Cluster":
        missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
        if missing:
            raise NoNodes(f"{', '.join(missing)} not found")
        self.nodes: list[Node] = []
        try:
            for _ in self.ADDRESSES:
                self.nodes.append(Node())
            first, second = self.nodes
            peer = ("peer", "name", INTERFACE, "netns", str(second.pid))
            first.ip("link", "add", "name", INTERFACE, "type", "veth", *peer)
            for node, address in zip(self.nodes, self.ADDRESSES, strict=True):
                node.ip("address", "add", f"{address}/24", "dev", INTERFACE)
                for interface in ("lo", INTERFACE):
                    node.ip("link", "set", interface, "up")
        except NoNodes:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.end()

    def cut(self) -> None:
        """Pull the cable: packets are lost, and nobody is told."""
        self.nodes[1].ip("link", "set", INTERFACE, "down")

    def mend(self) -> None:
        """Put it back."""
        self.nodes[1].ip("link", "set", INTERFACE, "up")
