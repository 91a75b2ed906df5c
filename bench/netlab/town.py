"""Public machines, and homes behind address translation (NAT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from bench.netlab.namespaces import inside, ip
from bench.netlab.places import Places

Kind = Literal["cone", "symmetric"]
"""How a home's router translates: `cone` gives a socket the same port towards everyone and lets
in whoever the socket sent to; `symmetric` gives it another, random port towards each."""

_RULES = """
table ip translation {{
  chain out {{
    type nat hook postrouting priority 100; policy accept;
    oifname "wan0" masquerade {random}
  }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    iifname "lan0" accept
    ct state established,related accept
  }}
  chain to_router {{
    type filter hook input priority 0; policy accept;
    iifname "wan0" ct state new drop
  }}
}}
"""


class Town(Places):
    """A context manager. Public addresses are such that the Internet has, since nodes treat those
    of private networks otherwise; nothing outside the namespaces can be reached.

    Args:
        public: machines that everyone reaches.
        homes: machines behind a router of the given kind, one home each.

    Raises:
        RuntimeError: namespaces cannot be made here; see `missing("nft")`.
    """

    def __init__(self, public: Sequence[str], homes: Mapping[str, Kind]) -> None:
        self._public = tuple(public)
        self._homes = dict(homes)
        routers = [f"router-{name}" for name in homes]
        super().__init__(["street", *public, *homes, *routers])

    def address(self, name: str) -> str:
        """The IPv4 address of a machine: of one in a home, its address there."""
        if name in self._homes:
            return f"192.168.{list(self._homes).index(name) + 1}.2"
        return f"11.22.33.{self.names.index(name) + 1}"

    def router_address(self, home: str) -> str:
        """The public address of a home."""
        return self.address(f"router-{home}")

    def join(self) -> None:
        street = self.namespaces["street"]
        ip("-n", street, "link", "add", "bridge", "type", "bridge")
        ip("-n", street, "link", "set", "bridge", "up")
        for number, name in enumerate((*self._public, *(f"router-{h}" for h in self._homes))):
            self._wire(street, f"port{number}", name, "wan0", f"{self.address(name)}/24")
            ip("-n", street, "link", "set", f"port{number}", "master", "bridge", "up")
        for name, kind in self._homes.items():
            router = self.namespaces[f"router-{name}"]
            gateway = self.address(name).rpartition(".")[0] + ".1"
            self._wire(router, "lan0", name, "wan0", f"{self.address(name)}/24")
            ip("-n", router, "addr", "add", f"{gateway}/24", "dev", "lan0")
            ip("-n", router, "link", "set", "lan0", "up")
            ip("-n", self.namespaces[name], "route", "add", "default", "via", gateway)
            inside(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            random = "random,fully-random" if kind == "symmetric" else ""
            ip("netns", "exec", router, "nft", "-f", "-", stdin=_RULES.format(random=random))

    def _wire(self, near: str, port: str, name: str, device: str, address: str) -> None:
        """A cable from a port in a namespace to a device of a machine."""
        far = self.namespaces[name]
        ip("-n", near, "link", "add", port, "type", "veth", "peer", "name", device, "netns", far)
        ip("-n", far, "addr", "add", address, "dev", device)
        ip("-n", far, "link", "set", device, "up")
