"""May the gateway connect to this address because a worker announced it? Only inside of configured networks.

A name is resolved when a connection is made, and the address that was looked at is the one connected to: what a name
meant when it was announced does not matter. Redirects are followed nowhere.
"""

import ipaddress
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from agentserve.errors import BadInput

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEVER_BY_DEFAULT: Final = ipaddress.ip_address("fd00:ec2::254")
"""A cloud's metadata service inside of a private network: reached only if a network names it alone."""


@dataclass(frozen=True, slots=True)
class Networks:
    """Networks that announced engines may be in."""

    networks: tuple[_Network, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From networks with commas between them; ValueError for what is none."""
        return cls(tuple(ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip()))

    def hold(self, address: str) -> bool:
        """Whether an IP address is in one of them."""
        try:
            given: _Address = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(given, ipaddress.IPv6Address) and given.ipv4_mapped is not None:
            given = given.ipv4_mapped
        if given == _NEVER_BY_DEFAULT:
            return any(network.num_addresses == 1 and given in network for network in self.networks)
        return any(given in network for network in self.networks)

    def check_announced(self, engine_url: str, kv_address: str | None) -> None:
        """Raise BadInput for an announced address outside of them; names are judged when they are resolved.

        An engine's partners are sent to `kv_address` by name, so a name there must be the engine's own.
        """
        host = _host_of(engine_url)
        if is_address(host) and not self.hold(host):
            raise BadInput(f"engine {host} is outside of the networks of AGENTSERVE_ENGINE_NETWORKS")
        if kv_address is not None:
            kv_host = _host_of(f"//{kv_address}")
            if not (self.hold(kv_host) if is_address(kv_host) else kv_host == host):
                raise BadInput(f"KV address {kv_host[:64]!r} is neither the engine's nor in AGENTSERVE_ENGINE_NETWORKS")


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts.hostname or ""
    except ValueError:
        raise BadInput("an announced address cannot be read") from None
