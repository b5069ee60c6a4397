"""Which addresses Millrace may connect to on behalf of a destination, so that nobody who can name one reaches into the
network that Millrace stands in.

The address is judged when the socket is made for it, after every look-up: a name that changes its address in between and an
address written as a number both end there. Redirects are not followed.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from schemas.errors import ConfigError

Network = IPv4Network | IPv6Network
_NAT64: Final = (
    ip_network("64:ff9b::/96"),
    ip_network("64:ff9b:1::/48"),
)  # RFC 6052 and RFC 8215: IPv4 in the last 32 bits


class AddressRefused(OSError):
    """The address is not on the public internet and `outbound.allow` does not name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """The configuration's `outbound`: networks allowed beside the public internet, and whose certificates are trusted (None:
    the system's authorities)."""

    allow: Sequence[Network] = ()
    trust: ssl.SSLContext | None = None


def permitted(address: str, allow: Sequence[Network]) -> bool:
    """Whether an IP address may be connected to: one that is globally reachable (IANA's special-purpose registries), or in
    a network of `allow`. An IPv4 address inside an IPv6 one is judged as itself."""
    bare = ip_address(address.partition("%")[0])
    inner = _inner(bare)
    if any(one in network for network in allow for one in {bare, inner} if one.version == network.version):
        return True
    return inner.is_global and not inner.is_multicast


def trusting(ca_file: str) -> ssl.SSLContext:
    """Trusts the system's authorities and those in a PEM file. ConfigError when it cannot be read."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:  # ssl.SSLError among them
        raise ConfigError(f"outbound.ca_file {ca_file}: {error}; give a file of certificates in PEM form") from error
    return context


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, itself when there is none."""
    if isinstance(address, IPv4Address):
        return address
    if any(address in network for network in _NAT64):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
