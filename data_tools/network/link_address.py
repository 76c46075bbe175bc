"""Normal form of addresses and hosts, and the decision which addresses may be fetched.

A link can be refused before the fetch (by its scheme or host) and again during the fetch, because names resolve and
servers redirect. Both use network/special_addresses.py.

Whoever compares hosts or addresses compares ``normal_host`` and ``normal_url``, so that no list is passed by another
spelling.
"""

import ipaddress
import os
import re
import string
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

from ada_url import URL

from data_tools.network.special_addresses import host_fault
from data_tools.work.foreign_error import first_line
from leam_mm.errors import UserError

URL_SAFE = "%/:=&?~#+!$,;'@()*[]"
PATH_SAFE = "/-._~!$&'()*+,;=:@"  # characters that a path holds unencoded (RFC 3986, 3.3)
PORTS = {"http": 80, "https": 443}
MAX_ADDRESS = 8000  # characters (RFC 9110, 4.1 asks servers to support that many)
_TRACKING = re.compile(
    r"(utm(_\w+)?|[a-z]{1,4}clid|msclkid|[gw]braid|mc_[ce]id|igshid|igsh|_ga|_gl|srsltid|mkt_tok|_hs(enc|mi)|hsa_\w+|__hs\w+"
    r"|vero_(id|conv)|oly_(anon|enc)_id|rb_clickid|s_cid|ml_subscriber\w*|wickedid|yclid|_openstat|li_fat_id|epik|rdt_cid"
    r"|(jsession|phpsess|aspsession|s)id)",
    re.IGNORECASE,
)  # parameters by which visitors are counted, not images chosen
_UNRESERVED = {f"%{ord(letter):02X}": letter for letter in string.ascii_letters + string.digits + "._~-"}
_SESSION = re.compile(r";(jsessionid|phpsessid|sid)=[^/;]*", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_DELIMITER = re.compile(r"[\x00-\x20\x7f/\\?#@:\[\]]")  # would end the host in the parser, or vanish from it


class LinkRefused(Exception):
    """A link must not be fetched: the rule, the value on which it decided, and the reason in words."""

    def __init__(self, rule: str, value: str, reason: str) -> None:
        """Keep rule and value for the ledger."""
        super().__init__(reason)
        self.rule, self.value, self.reason = rule, value, reason


@lru_cache(maxsize=100_000)
def normal_host(host: str) -> str:
    """Return the one spelling of a host name or IP address.

    Names are in lower case and ASCII, without percent-encoding and trailing dots (WHATWG URL, section 3.5; UTS 46).
    IPv4 addresses are dotted decimal, whether their parts are written in octal, decimal or hexadecimal. IPv6 addresses
    are compressed (RFC 5952), without brackets and zone; those that hold a mapped IPv4 address are this address.

    Raises:
        ValueError: The text is neither a name nor an address.
    """
    name, earlier = host.strip(), ""
    bracketed = name.startswith("[") and name.endswith("]")
    if bracketed or ":" in name:
        ip = ipaddress.IPv6Address(unquote(name[1:-1] if bracketed else name).partition("%")[0])
        return str(ip.ipv4_mapped or ip)
    while name != earlier:  # without its last dots, a name can turn out to be a number, and so an address
        if _DELIMITER.search(name):
            raise ValueError(f"{host!r:.100} is not a valid host name")
        earlier, name = name, URL(f"http://{name}/").hostname.rstrip(".")
    if not _NAME.fullmatch(name) or len(name) > 253:  # RFC 1035, 2.3.4
        raise ValueError(f"{host!r:.100} is not a valid host name")
    return name


def host_of(url: str | None) -> str:
    """Return the host of an address in its normal form, or an empty string."""
    try:
        parts = urlsplit((url or "").strip())
        return "" if "\\" in parts.netloc else normal_host(parts.hostname or "")  # browsers end a host there
    except ValueError:
        return ""


def normal_url(url: str) -> str:
    """Return one spelling for all addresses of the same resource (RFC 3986, 6.2.2 and 6.2.3).

    The scheme is in lower case, the host is a ``normal_host``. User name, default port, fragment and dot segments are
    removed. Only those characters are percent-encoded that must be. Text that is not an address is only stripped.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host = normal_host(host) if host else ""
    except ValueError:
        return text
    if not parts.scheme or (not host and (parts.scheme in PORTS or parts.path.startswith("//"))):
        return text
    path = _percent(parts.path, PATH_SAFE)
    if parts.scheme in PORTS:
        path = without_dots(path)
    return urlunsplit(
        (parts.scheme, _netloc(parts.scheme, host, port), path, _percent(parts.query, PATH_SAFE + "?"), "")
    )


def plain_path(path: str) -> str:
    """Return a path with single slashes and no dot segments; ``%2F`` and backslashes count as slashes."""
    return without_dots(re.sub("/{2,}", "/", re.sub(r"%2f|%5c|\\", "/", path, flags=re.IGNORECASE)))


def spellings(url: str) -> list[str]:
    """Return an address, and the plain spelling of its path, without ``;parameters``, if that is another one.

    Most servers give the same file for both. Rules must hold for both, because strangers write the addresses.
    """
    parts = urlsplit(url)
    path = plain_path(re.sub(";[^/]*", "", parts.path))
    return [url] if path == (parts.path or "/") else [url, urlunsplit(parts._replace(path=path))]


def address_key(url: str) -> str:
    """Return what all usual addresses of one image have in common: the normal form without scheme and tracking.

    Slashes are as in ``plain_path``, sessions and empty or tracking parameters are left out, and parameters are sorted.
    Different images may have the same key, so it serves only to refuse.
    """
    normal = normal_url(url)
    try:
        parts = urlsplit(normal)
    except ValueError:
        return normal
    if parts.scheme not in PORTS or not parts.netloc:
        return normal
    fields = [part for part in parts.query.split("&") if part and not _TRACKING.fullmatch(part.partition("=")[0])]
    path = _percent(plain_path(_SESSION.sub("", parts.path)), PATH_SAFE)
    return f"//{parts.netloc}{path}" + ("?" + "&".join(sorted(fields)) if fields else "")


def address_forms(url: str) -> set[str]:
    """Return spellings of an address under which a list of addresses or of their digests may hold it."""
    key = address_key(url)
    return {url, normal_url(url), key} | ({f"{scheme}:{key}" for scheme in PORTS} if key.startswith("//") else set())


def trusted_hosts(option: str, hosts: Iterable[str]) -> list[str]:
    """Return the hosts of an option in their normal form, sorted.

    Raises:
        UserError: One of them is not a host.
    """
    try:
        return sorted({normal_host(host) for host in hosts})
    except ValueError as error:
        raise UserError(f"{option}: {error}; give names or IP addresses, without scheme and port") from None


def _netloc(scheme: str, host: str, port: int | None) -> str:
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port and port != PORTS.get(scheme) else "")


def _percent(text: str, safe: str) -> str:
    """Percent-encode only the characters that must be; ``%2F`` and ``/`` have different meanings and stay different."""
    encoded = quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", text).encode("utf-8", "surrogatepass"), safe + "%")
    return re.sub(r"%[0-9a-fA-F]{2}", _decoded, encoded)


def _decoded(found: re.Match[str]) -> str:
    code = found[0].upper()
    return _UNRESERVED.get(code, code)


def without_dots(path: str) -> str:
    """Remove the segments ``.`` and ``..`` (RFC 3986, 5.2.4), percent-encoded ones too, as browsers do."""
    kept, plain = [""], "."
    for segment in path.split("/")[1:]:
        plain = segment.replace("%2e", ".").replace("%2E", ".")
        if plain == "..":
            kept = kept[:-1] or [""]
        elif plain != ".":
            kept.append(segment)
    if plain in (".", ".."):
        kept.append("")
    return "/".join(kept) or "/"


def check_link(url: str | None, base: Path, allow_file: bool, allow_private: list[str]) -> tuple[str, str, str]:
    """Decide whether a link may be fetched.

    Args:
        url: The link as in the table; ``file:name`` without slashes is relative to ``base``.
        base: Folder of the table.
        allow_file: Whether files of this machine may be read.
        allow_private: Hosts to trust although their addresses are not public, as ``normal_host`` returns them.

    Returns:
        The address to fetch (ASCII, with the normal form of the host, without default port and dot segments), the
        address to publish (without the path of this machine for files inside ``base``), and the host in its normal form
        ("" for files).

    Raises:
        LinkRefused: The link must not be fetched.
    """
    try:
        (url or "").encode()  # fails for half a surrogate pair
        parts = urlsplit((url or "").strip())
        host, port = (parts.hostname or ""), parts.port
    except ValueError as error:
        shown = str(url).encode("utf-8", "replace").decode()
        raise LinkRefused("url", shown, f"not a valid address: {first_line(error)}") from None
    if len(url or "") > MAX_ADDRESS and parts.scheme in (*PORTS, "file"):
        raise LinkRefused("url", f"{len(url or '')} characters", f"longer than {MAX_ADDRESS} characters")
    if parts.scheme == "file":
        if not allow_file:
            raise LinkRefused("scheme", "file", "files are read only with --allow-file")
        if host not in ("", "localhost"):
            raise LinkRefused("host", host, "a file address with another machine's name")
        try:
            path = (base / os.fsdecode(unquote_to_bytes(parts.path))).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # too long, with a zero byte, or a circle of links
            raise LinkRefused("path", parts.path[:200], f"not a usable path: {first_line(error)}") from None
        inside = path.is_relative_to(base.resolve())
        if not inside and not parts.path.startswith("/"):
            raise LinkRefused("path", parts.path, "a relative file address that leads out of the table's folder")
        public = quote(os.fsencode(path.relative_to(base.resolve()).as_posix() if inside else path.name))
        return path.as_uri(), "file:" + public, ""
    if parts.scheme not in ("http", "https"):
        raise LinkRefused("scheme", parts.scheme, "only http and https are fetched")
    if not host:
        raise LinkRefused("host", "", "the address names no host")
    if parts.username or parts.password:
        raise LinkRefused("host", host, "the address carries a user name or password")
    try:
        host = normal_host(host)
    except ValueError:
        raise LinkRefused("host", host[:200], "not a valid host name") from None
    if host not in allow_private and (fault := host_fault(host)):
        raise LinkRefused("private_address", host, f"{fault}; see --allow-private")
    netloc, file = _netloc(parts.scheme, host, port), without_dots(quote(parts.path, URL_SAFE)) if parts.path else ""
    fetch = urlunsplit((parts.scheme, netloc, file, quote(parts.query, URL_SAFE), ""))
    return fetch, (url or "").strip(), host
