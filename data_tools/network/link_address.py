"""Decide which addresses may be fetched: http and https of public hosts, and files if allowed.

A link can be refused before the fetch (by its scheme or host) and again during the fetch, because names resolve and
servers redirect. Both use ``address_fault``.
"""

import ipaddress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

NAT64 = ipaddress.ip_network("64:ff9b::/96")
URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


class LinkRefused(Exception):
    """A link must not be fetched: the rule, the value on which it decided, and the reason in words."""

    def __init__(self, rule: str, value: str, reason: str) -> None:
        """Keep rule and value for the ledger."""
        super().__init__(reason)
        self.rule, self.value, self.reason = rule, value, reason


def address_fault(address: str) -> str | None:
    """Describe why an IP address is not part of the public internet, or return None."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        ip = inner or ip
    if ip.is_loopback:
        return f"{address} is a loopback address"
    if ip.is_link_local:
        return f"{address} is a link-local address"
    if ip.is_multicast or not ip.is_global:
        return f"{address} is a private address"
    return None


def check_link(url: str | None, base: Path, allow_file: bool, allow_private: list[str]) -> tuple[str, str, str]:
    """Decide whether a link may be fetched.

    Args:
        url: The link as in the table; ``file:name`` without slashes is relative to ``base``.
        base: Folder of the table.
        allow_file: Whether files of this machine may be read.
        allow_private: Hosts to trust although their addresses are not public.

    Returns:
        The address to fetch (ASCII), the address to publish (without the path of this machine for files inside
        ``base``), and the domain ("" for files).

    Raises:
        LinkRefused: The link must not be fetched.
    """
    try:
        parts = urlsplit((url or "").strip())
        host, port = (parts.hostname or ""), parts.port
    except ValueError as error:
        raise LinkRefused("url", str(url), f"not a valid address: {error}") from None
    if parts.scheme == "file":
        if not allow_file:
            raise LinkRefused("scheme", "file", "files are read only with --allow-file")
        if host not in ("", "localhost"):
            raise LinkRefused("host", host, "a file address with another machine's name")
        path = (base / unquote(parts.path)).resolve()
        inside = path.is_relative_to(base.resolve())
        if not inside and not parts.path.startswith("/"):
            raise LinkRefused("path", parts.path, "a relative file address that leads out of the table's folder")
        public = quote(path.relative_to(base.resolve()).as_posix() if inside else path.name)
        return path.as_uri(), "file:" + public, ""
    if parts.scheme not in ("http", "https"):
        raise LinkRefused("scheme", parts.scheme, "only http and https are fetched")
    if not host:
        raise LinkRefused("host", "", "the address names no host")
    if parts.username or parts.password:
        raise LinkRefused("host", host, "the address carries a user name or password")
    try:
        host = host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError as error:
        raise LinkRefused("host", host, f"not a valid host name: {error}") from None
    if host not in allow_private:
        if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
            raise LinkRefused("private_address", host, "a name of a private network; see --allow-private")
        try:
            fault = address_fault(host)
        except ValueError:
            fault = None  # a name: its addresses are checked when the connection is made
        if fault:
            raise LinkRefused("private_address", host, f"{fault}; see --allow-private")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    fetch = urlunsplit((parts.scheme, netloc, quote(parts.path, URL_SAFE), quote(parts.query, URL_SAFE), ""))
    return fetch, (url or "").strip(), host
