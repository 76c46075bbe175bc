"""Addresses and names that are not part of the public internet, and so are never fetched.

``BLOCKS`` holds IANA's special-purpose registries whole, as of 18 July 2026, whether a block is globally reachable or
not, because none of them holds a server of images:
https://www.iana.org/assignments/iana-ipv4-special-registry and https://www.iana.org/assignments/iana-ipv6-special-registry.
Multicast has registries of its own. The service addresses of cloud platforms follow, as their documentation names them.
"""

import ipaddress
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

BLOCKS = {
    "0.0.0.0/8": "an unspecified address",
    "10.0.0.0/8": "a private address",
    "100.64.0.0/10": "a private address (shared by carriers)",
    "127.0.0.0/8": "a loopback address",
    "169.254.0.0/16": "a link-local address",
    "172.16.0.0/12": "a private address",
    "192.0.0.0/24": "a reserved address (IETF protocol assignments)",
    "192.0.2.0/24": "a reserved address (documentation)",
    "192.31.196.0/24": "a reserved address (AS112)",
    "192.52.193.0/24": "a reserved address (AMT)",
    "192.88.99.0/24": "a reserved address (6to4 relay)",
    "192.168.0.0/16": "a private address",
    "192.175.48.0/24": "a reserved address (AS112)",
    "198.18.0.0/15": "a private address (benchmarking)",
    "198.51.100.0/24": "a reserved address (documentation)",
    "203.0.113.0/24": "a reserved address (documentation)",
    "224.0.0.0/4": "a multicast address",
    "240.0.0.0/4": "a reserved address",
    "64:ff9b:1::/48": "a private address (translated, RFC 8215)",
    "2001::/23": "a reserved address (IETF protocol assignments, Teredo)",
    "2001:db8::/32": "a reserved address (documentation)",
    "2002::/16": "a reserved address (6to4)",
    "2620:4f:8000::/48": "a reserved address (AS112)",
    "3fff::/20": "a reserved address (documentation)",
    "5f00::/16": "a reserved address (segment routing)",
    "::1/128": "a loopback address",
    "fc00::/7": "a private address",
    "fe80::/10": "a link-local address",
    "ff00::/8": "a multicast address",
    # The other blocks of the IPv6 registry, and obsolete ones such as fec0::/10, lie outside ``UNICAST``.
    # learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    "168.63.129.16/32": "a service address of Azure",
    # cloud.ibm.com/docs/vpc?topic=vpc-service-endpoints-for-vpc
    "161.26.0.0/16": "a service address of IBM Cloud",
    "166.8.0.0/14": "a service address of IBM Cloud",
}
UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has assigned (RFC 4291, section 2.4)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
# Names that are resolved inside of a network (RFC 6761, 6762 with appendix G, 8375; .internal: ICANN, 2024).
PRIVATE_NAMES = frozenset(
    ("localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa", "svc")
)
_NETWORKS: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = [
    (ipaddress.ip_network(block), name) for block, name in BLOCKS.items()
]


@lru_cache(maxsize=100_000)
def address_fault(address: str) -> str | None:
    """Describe why an IP address is not part of the public internet, or return None.

    Raises:
        ValueError: The text is not an IP address.
    """
    ip: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        ip = ip.ipv4_mapped or translated or ip
    for network, name in _NETWORKS:
        if ip in network:
            return f"{address} is {name}"
    if ip.version == 6 and ip not in UNICAST:
        return f"{address} is a reserved address"
    return None


def host_fault(host: str) -> str | None:
    """Describe why a host is not part of the public internet, as far as its name or address shows it, or return None.

    Args:
        host: A ``normal_host``.
    """
    try:
        return address_fault(host)
    except ValueError:
        pass  # a name: its addresses are checked when the connection is made
    labels = host.split(".")
    if len(labels) == 1 or not PRIVATE_NAMES.isdisjoint((labels[-1], ".".join(labels[-2:]))):
        return f"{host} is a name of a private network"
    return None
