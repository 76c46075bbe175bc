"""The registered domain of a host, by which documents count where data comes from."""

import re
from functools import cache, lru_cache
from urllib.parse import urlsplit

from publicsuffixlist import PublicSuffixList


@lru_cache(maxsize=100_000)
def registrable_domain(host: str) -> str | None:
    """Return the registered domain (``example.co.uk`` of ``img.example.co.uk``); None for public suffixes and IPs."""
    return None if is_address(host) else _suffixes().privatesuffix(host)


def is_address(host: str) -> bool:
    """Return whether a host is written as an IP address."""
    return bool(re.fullmatch(r"[0-9.]+|\[?[0-9a-f:.]*:[0-9a-f:.]*\]?", host))


def plain_host(url: str | None) -> str:
    """Return the host of an address in lower case and ASCII, or an empty string.

    For samples whose json names no ``domain``; programs that decide about links use the stricter
    ``data_tools.network.link_address.normal_host``.
    """
    try:
        host = (urlsplit((url or "").strip()).hostname or "").rstrip(".")
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError, too
        return ""


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()
