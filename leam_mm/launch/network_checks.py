"""Checks of the network of a host: interfaces, IPv6, and the address at which the ranks meet."""

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from leam_mm.launch.check_process import Target
from leam_mm.launch.check_result import CheckResult, Verdict, expected, not_run

NO_IPV6 = {"NCCL_SOCKET_FAMILY": "AF_INET", "GLOO_USE_IPV6": "0"}  # JUPITER; reported by users in job scripts of 2026


def interface_addresses() -> dict[str, list[Any]]:
    """Return the addresses of each interface that is up, as ``ipaddress`` interfaces; loopback included."""
    state = psutil.net_if_stats()
    found: dict[str, list[Any]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        if name in state and state[name].isup:
            found[name] = [made for one in addresses if (made := _interface(one)) is not None]
    return found


def _interface(address: Any) -> Any:
    if address.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    text = address.address.partition("%")[0]
    try:
        if address.family == socket.AF_INET:
            return ipaddress.ip_interface(f"{text}/{address.netmask or 32}")
        mask = int(ipaddress.IPv6Address(address.netmask)) if address.netmask else (1 << 128) - 1
        return ipaddress.ip_interface(f"{text}/{mask.bit_count()}")
    except ValueError:
        return None


def nccl_matches(wanted: str, names: list[str]) -> list[str]:
    """Return the interfaces that NCCL_SOCKET_IFNAME selects: prefixes, ``=`` exact names, ``^`` exclusions."""
    mark, rest = (wanted[0], wanted[1:]) if wanted[:1] in ("^", "=") else ("", wanted)
    exact = mark == "=" or rest.startswith("=")
    parts = [part for part in rest.lstrip("=").split(",") if part]
    hit = [name for name in names if any(name == part if exact else name.startswith(part) for part in parts)]
    return [name for name in names if name not in hit] if mark == "^" else hit


def gloo_matches(wanted: str, names: list[str]) -> list[str]:
    """Return the interfaces that GLOO_SOCKET_IFNAME names, or an empty list if one of them does not exist."""
    parts = wanted.split(",")
    return parts if all(part in names for part in parts) else []


def check_interfaces(target: Target, env: Mapping[str, str] = os.environ) -> list[CheckResult]:
    """Compare NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME with the interfaces that are up, and with the profile."""
    found, network = interface_addresses(), target.profile.network
    data = {name: [str(address) for address in addresses] for name, addresses in found.items()}
    up = ", ".join(f"{n} {next((str(a.ip) for a in found[n] if a.version == 4), 'no IPv4')}" for n in found)
    results = [CheckResult("interfaces", len(found), "up", reason=up, data={"interfaces": data})]
    for variable, fact, matches in (
        ("NCCL_SOCKET_IFNAME", network.socket_interface, nccl_matches),
        ("GLOO_SOCKET_IFNAME", network.gloo_interface, gloo_matches),
    ):
        results.append(_named_interface(variable, env.get(variable, ""), fact, matches, found))
    return results


def _named_interface(
    variable: str, value: str, fact: Any, matches: Callable[[str, list[str]], list[str]], found: dict[str, list[Any]]
) -> CheckResult:
    text, names = expected(fact), list(found)
    if not value:
        if not fact.known:
            return CheckResult(variable, "not set", reason="the library chooses the interface")
        return CheckResult(
            variable,
            "not set",
            "",
            text,
            "warn",
            "the library may choose another interface",
            f"export {variable}={fact.value}",
        )
    chosen = matches(value, names)
    if not chosen:
        choice = fact.value if fact.known and matches(fact.value, names) else " or ".join(names)
        fix = f"export {variable}={choice}"
        return CheckResult(
            variable, value, "", text, "fail", f"no interface of this name is up: {', '.join(names)}", fix
        )
    if not any(found[name] for name in chosen):
        return CheckResult(variable, value, "", text, "fail", "the interface has no address", "name another interface")
    return CheckResult(variable, value, "", text, reason="selects " + ", ".join(chosen))


def check_ipv6(target: Target, env: Mapping[str, str] = os.environ) -> list[CheckResult]:
    """Compare IPv6 on this host with the profile; hosts without it need two variables."""
    usable = [a for addresses in interface_addresses().values() for a in addresses
              if a.version == 6 and not a.is_loopback and not a.is_link_local]  # fmt: skip
    fact = target.profile.network.ipv6
    value = "yes" if usable else "no"
    verdict: Verdict = "pass"
    reason = fix = ""
    if fact.value is True and not usable:
        verdict, reason = "warn", "no interface has a global IPv6 address"
        fix = _exports(NO_IPV6)
    elif fact.value is False:
        unset = {name: wanted for name, wanted in NO_IPV6.items() if env.get(name) != wanted}
        if unset:
            verdict, reason, fix = "warn", "libraries may try IPv6, which this cluster lacks", _exports(unset)
    return [CheckResult("ipv6", value, "", expected(fact), verdict, reason, fix)]


def _exports(variables: Mapping[str, str]) -> str:
    return "export " + " ".join(f"{name}={value}" for name, value in variables.items())


def check_master_address(target: Target) -> list[CheckResult]:
    """Resolve the address at which the ranks meet, and compare it with the networks of this host."""
    ranks, name = target.ranks, "master address"
    if not ranks.address:
        return [not_run(name, "one process without MASTER_ADDR")]
    suffix = target.profile.network.master_suffix
    hint = f", with the suffix {suffix.value!r}" if suffix.value else ", without a suffix"
    fix = f"export MASTER_ADDR as the first host's name on the fast network{hint if suffix.known else ''}"
    try:
        answers = socket.getaddrinfo(ranks.address, ranks.port, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = f"does not resolve: {error.strerror}"
        return [CheckResult(name, ranks.address, verdict="fail", reason=reason, fix=fix)]
    addresses = list(dict.fromkeys(ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in answers))
    own = {a.ip: (n, a) for n, found in interface_addresses().items() for a in found}
    reached = [n for a in addresses for n, i in own.values() if a in i.network and (not i.is_loopback or a in own)]
    text = f"{ranks.address} is " + ", ".join(map(str, addresses))
    several = ranks.world > ranks.local_world
    if several and all(a.is_loopback for a in addresses):
        reason = f"{text}, the loopback of each host, but there are several hosts"
        return [CheckResult(name, ranks.address, verdict="fail", reason=reason, fix=fix)]
    if ranks.rank == 0 and not ranks.agent_store and not any(a in own or a.is_loopback for a in addresses):
        reason = f"{text}, which is no address of rank 0's host"
        return [CheckResult(name, ranks.address, verdict="fail", reason=reason, fix=fix)]
    if not reached:
        reason = f"{text}, outside the networks of this host, so a router is on the way"
        return [CheckResult(name, ranks.address, verdict="warn", reason=reason, fix=fix)]
    return [CheckResult(name, ranks.address, reason=f"{text}, on {', '.join(dict.fromkeys(reached))}")]
