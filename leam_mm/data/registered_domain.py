"""The registered domain of a host, by which documents count where data comes from."""

import re
from functools import cache, lru_cache
from urllib.parse import urlsplit

from publicsuffixlist import PublicSuffixList

# Hosts whose subdomains belong to different people, but which the public suffix list does not hold.
SHARED_DOMAINS = frozenset((
    "500px.com", "b-cdn.net", "backblazeb2.com", "bandcamp.com", "beehiiv.com", "blog.jp", "canalblog.com",
    "cargo.site", "cargocollective.com", "cdn.bunny.net", "deviantart.com", "fandom.com", "files.wordpress.com",
    "free.fr", "ghost.io", "googleusercontent.com", "hatenablog.com", "imgix.net", "itch.io", "jimdofree.com",
    "jimdosite.com", "kinja.com", "livedoor.jp", "livejournal.com", "media.tumblr.com", "medium.com", "mozello.com",
    "narod.ru", "neocities.org", "over-blog.com", "photoshelter.com", "pixieset.com", "pixnet.net", "skyrock.com",
    "smugmug.com", "squarespace.com", "storage.googleapis.com", "storage.yandexcloud.net", "strikingly.com",
    "substack.com", "tripod.com", "tumblr.com", "twic.pics", "typepad.com", "ucoz.com", "ucraft.net", "webflow.io",
    "weebly.com", "wikidot.com", "wordpress.com", "zenfolio.com",
))  # fmt: skip
# Hosts on which different people own the first part of the path.
SHARED_HOSTS = frozenset((
    "cdn.jsdelivr.net", "cloudfront.net", "drive.google.com", "filedn.com", "ipfs.io", "raw.githubusercontent.com",
    "res.cloudinary.com", "s3.amazonaws.com", "sites.google.com", "storage.googleapis.com",
    "storage.yandexcloud.net", "telegra.ph", "web.archive.org",
))  # fmt: skip


def same_owner(host: str, other: str) -> bool:
    """Return whether two hosts belong to one owner: one registered domain, or one customer of a shared domain.

    An IP address or a public suffix belongs to itself alone, and a host that is shared by paths to nobody.
    """
    if host in SHARED_HOSTS or other in SHARED_HOSTS:
        return False
    owner = _owner(host)
    return host == other or (owner is not None and owner == _owner(other))


def _owner(host: str) -> str | None:
    """Return the domain below which one owner decides; None for shared domains themselves."""
    labels = host.split(".")
    for number in range(len(labels)):
        if ".".join(labels[number:]) in SHARED_DOMAINS:
            return ".".join(labels[number - 1 :]) if number else None
    return registrable_domain(host)


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
