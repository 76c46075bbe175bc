"""The record of a sample of a tar that others made, in the form of our own samples, and its key."""

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_tools.indexing.member_captions import Caption, is_img2dataset
from data_tools.links.link_sources import LinkSources
from data_tools.network.link_address import host_of
from leam_mm.data.ledger import link_uid
from leam_mm.json_text import parse_object

URLS = ("url", "URL", "image_url")
LICENCES = ("licence", "license", "LICENSE", "LICENCE")
MAX_FIELD = 2000  # characters of a further field
MAX_FIELDS = 50
MAX_KEY = 64  # bytes; two endings may follow
PLAIN_KEY = re.compile(r"[^\x00-\x20./\\~\x7f-\xa0]+( [^\x00-\x20./\\~\x7f-\xa0]+)*")
DIGEST = re.compile(r"[0-9a-f]{64}")
CONSUMED = frozenset(
    {"key", "sha256", "width", "height", "original_width", "original_height", "attribution", *URLS, *LICENCES}
)
RIGHTS = {"Image Copyright": "copyright", "Image Artist": "artist"}  # fields of EXIF, as img2dataset writes them


@dataclass(frozen=True)
class Rights:
    """What the user states of all samples.

    Args:
        legal_basis: Legal basis of their use, or ``unknown``.
        licence: Their licence; None takes that of their json.
        sources: File of legal bases and licences by domain, which come first; see data_tools/links/link_sources.py.
    """

    legal_basis: str
    licence: str | None = None
    sources: Path | None = None

    def of(self, host: str | None) -> tuple[str, str | None]:
        """Return legal basis and licence of a sample from a host."""
        if self.sources is not None and host:
            standing = _read_sources(self.sources).standing(host, None, None)
            if standing.said_by != "default":
                return standing.basis.value, standing.licence or self.licence
        return self.legal_basis, self.licence


@lru_cache(maxsize=2)
def _read_sources(path: Path) -> LinkSources:
    return LinkSources(path)


def plain_key(key: str) -> str:
    """Return the key under which a sample is stored: its own, or a readable form with a digest if it is no plain name.

    Keys of ours hold no dot, slash, backslash or tilde, and have at most 80 bytes in UTF-8.
    """
    if len(key.encode("utf-8", "replace")) <= MAX_KEY and key.isprintable() and PLAIN_KEY.fullmatch(key):
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    readable = "".join(
        letter if letter.isprintable() and letter not in "./\\~\ufffd" and not 0xD800 <= ord(letter) < 0xE000 else "_"
        for letter in key
    )
    short = readable.encode()[: MAX_KEY - 9].decode("utf-8", "ignore").strip() or "_"
    return f"{short}~{digest}"


def foreign_record(
    tar: str,
    key: str,
    said: Mapping[str, Any] | None,
    captions: list[Caption],
    image: tuple[str, int, int],
    sha256: str,
    rights: Rights,
    caption_fields: Collection[str] = (),
) -> dict[str, Any]:
    """Return the record of a sample.

    Args:
        tar: File name of its tar.
        key: Its key there.
        said: Its json, or None.
        captions: At least one.
        image: Suffix, width and height.
        sha256: Digest of the stored image, which stands for that of the original unless its json says another.
        rights: What the user states.
        caption_fields: Fields of the json that hold the captions.
    """
    fields = said or {}
    url = next((text for name in URLS if (text := _text(fields.get(name))) and "://" in text), None)
    original = fields.get("sha256")
    metadata: dict[str, Any] = {"tar": tar, "key": key.encode("utf-8", "replace").decode()}
    taken = CONSUMED.union(caption_fields)
    texts = {caption["text"] for caption in captions}
    further = {
        name: value
        for name, value in fields.items()
        if name not in taken and _is_plain(value) and not (isinstance(value, str) and value.strip() in texts)
    }
    metadata |= {name: further[name] for name in list(further)[:MAX_FIELDS] if name not in ("tar", "key")}
    metadata |= _rights_of_exif(fields.get("exif"))
    domain = host_of(url) or None
    legal_basis, licence = rights.of(domain)
    return {
        "uid": link_uid(url, None, captions[0]["text"]) if url else link_uid(f"{tar}#{key}", None, captions[0]["text"]),
        "captions": captions,
        "url": url,
        "page_url": None,
        "domain": domain,
        "licence": licence or next((text for name in LICENCES if (text := _text(fields.get(name)))), None),
        "legal_basis": legal_basis,
        "attribution": _text(fields.get("attribution")),
        "crawler": "img2dataset" if is_img2dataset(fields) else None,
        "fetched_at": None,
        "sha256": original if isinstance(original, str) and DIGEST.fullmatch(original) else sha256,
        "pdq": None,
        "width": image[1],
        "height": image[2],
        "original_width": _count(fields.get("original_width")),
        "original_height": _count(fields.get("original_height")),
        "transforms": None,
        "consent": {},
        "metadata": metadata,
    }


def _text(value: object) -> str | None:
    return value.strip()[:MAX_FIELD] or None if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _is_plain(value: object) -> bool:
    """Return whether a field of the json can be carried: a short text, a number, or a truth value."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_FIELD and not value.startswith(("{", "["))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 63)


def _rights_of_exif(exif: object) -> dict[str, str]:
    """Return what the EXIF that img2dataset kept says of rights; the rest may hold places and serial numbers."""
    if not isinstance(exif, str) or not any(name in exif for name in RIGHTS):
        return {}
    try:
        found = parse_object(exif)
    except ValueError:
        return {}
    return {name: text for field, name in RIGHTS.items() if (text := _text(found.get(field)))}
