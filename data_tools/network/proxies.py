"""Use a proxy only if a person allows it by name.

A proxy resolves the names of strangers' servers itself, where this machine cannot see to which address they lead. A
name or a redirect could then reach the private network of the proxy.
"""

import base64
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from data_tools.network.link_address import normal_host
from leam_mm.errors import UserError


@dataclass(frozen=True)
class Proxy:
    """A proxy of the environment.

    Args:
        name: Host and port.
        authorization: Value of the Proxy-Authorization header (RFC 7617), or None.
    """

    name: str
    authorization: str | None = None


def allowed_proxies(allowed: Sequence[str]) -> dict[str, Proxy]:
    """Return the proxies of the environment for http and https (``http_proxy``, ``https_proxy``, ``all_proxy``).

    Args:
        allowed: Proxies that may be used, each as host or host:port.

    Raises:
        UserError: The environment names another proxy, or one of another kind than http.
    """
    named = urllib.request.getproxies()
    if named.get("no", "").strip() == "*":
        return {}
    trusted = {_name(text, "--allow-proxy") for text in allowed}
    proxies = {}
    for scheme in ("http", "https"):
        variable = next((name for name in (scheme, "all") if named.get(name)), None)
        if variable is None:
            continue
        parts = urlsplit(named[variable] if "://" in named[variable] else f"http://{named[variable]}")
        name = _name(parts.netloc.rpartition("@")[2], f"{variable}_proxy")
        if name not in trusted and name.rpartition(":")[0] not in trusted:
            raise UserError(
                f"{variable}_proxy names the proxy {name}, which is not allowed: give --allow-proxy {name} if it "
                f"refuses private addresses, or unset {variable}_proxy"
            )
        if parts.scheme != "http":
            raise UserError(f"{variable}_proxy: a proxy of kind {parts.scheme} is not supported; name one of http://")
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
        proxies[scheme] = Proxy(name, f"Basic {base64.b64encode(login.encode()).decode()}" if login else None)
    return proxies


def _name(text: str, where: str) -> str:
    """Return host:port, or the host alone if there is no port, in the normal form."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = normal_host(parts.hostname or ""), parts.port
    except ValueError as error:
        raise UserError(f"{where} {text[:80]!r} is not a proxy ({error}); give it as host:port") from None
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host
