"""Which network interface the processes of several machines use to talk to one another over gloo.

gloo takes the address that this machine's own name has. Many Linux distributions give it 127.0.1.1 in /etc/hosts, which
no other machine can reach. The interface from which the first machine is reached is the right one.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import MutableMapping

INTERFACE = "GLOO_SOCKET_IFNAME"
ADDRESS_ELSEWHERE = "192.0.2.1"
"""Reserved for documentation (RFC 5737). Nothing is sent there: the system only says which way it would go."""


def choose_interface(environment: MutableMapping[str, str]) -> None:
    """Set GLOO_SOCKET_IFNAME for a launch of several machines, where the user has not and an interface is found."""
    world, local = environment.get("WORLD_SIZE", "1"), environment.get("LOCAL_WORLD_SIZE", "1")
    if environment.get(INTERFACE) or world == local or not environment.get("MASTER_ADDR"):
        return
    name = find_interface(environment["MASTER_ADDR"])
    if name is not None:
        environment[INTERFACE] = name


def find_interface(host: str) -> str | None:
    """The interface from which `host` is reached; where that is this machine, or is not known by this name, the one
    that leads elsewhere. None if there is none but the machine's own."""
    import psutil  # accelerate brings it

    for target in (host, ADDRESS_ELSEWHERE):
        own = _own_address(target)
        if own is None or ipaddress.ip_address(own).is_loopback:
            continue
        for name, addresses in psutil.net_if_addrs().items():
            if any(each.address.partition("%")[0] == own for each in addresses):
                return name
    return None


def _own_address(host: str) -> str | None:
    """The address that this machine has for `host`; None where the name or the way is not known."""
    try:
        known = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return None
    for family, kind, protocol, _, address in known:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # of a datagram socket: nothing is sent
                return probe.getsockname()[0].partition("%")[0]
        except OSError:
            continue
    return None
