"""Which samples a person means: by address, domain, digest, picture or caption.

A selector says what to look for; ``match`` answers for one stored sample with the reasons why it is meant, so that a
dry run can be read and argued with. Nothing of what the selectors hold needs to be published: ``public`` names them by
their hashes.
"""

import hashlib
import hmac
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
from PIL import Image

from data_tools.links.blocklists import ascii_domain
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.vetting.perceptual_hash import hamming, hash_text, pdq, read_hash
from leam_mm.errors import UserError

RADIUS = 31  # bits of 256, the border of the PDQ paper
LEAST_QUALITY = 50  # of PDQ: below, the hash of a flat picture is that of its noise
IMAGES = ("jpg", "png", "webp")
KINDS = ("url", "domain", "sha256", "uid", "image", "caption")
CAPTION_MATCHES = ("exact", "normalised", "contains")
MAX_PIXELS = 89_000_000
SAFE = "/-._~!$&'()*+,;=:@"  # what a path may hold as it is (RFC 3986, 3.3)
PORTS = {"http": 80, "https": 443}


def normalised_url(url: str) -> str:
    """One spelling for addresses that mean the same resource (RFC 3986, 6.2.2 and 6.2.3).

    Scheme and host in small letters, international names in their ASCII form, no default port, no fragment, each
    character percent-encoded exactly where it must be. What is no address comes back stripped and as it was.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except (ValueError, UnicodeError):
        return text
    if not parts.scheme:
        return text
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{port}" if port and port != PORTS.get(parts.scheme) else ""
    path = _percent(parts.path, SAFE) or ("/" if parts.scheme in PORTS else "")
    return urlunsplit((parts.scheme, netloc, path, _percent(parts.query, SAFE + "?"), ""))


def _percent(text: str, safe: str) -> str:
    """Each character encoded exactly where it must be; ``%2F`` and ``/`` mean different things and stay different."""
    encoded = quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", text).encode("utf-8", "surrogatepass"), safe + "%")
    return re.sub(r"%[0-9a-fA-F]{2}", _decoded, encoded)


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[0][1:], 16))
    return character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else found[0].upper()


def url_digest(url: str) -> str:
    """SHA-256 of the normalised address, in hexadecimal."""
    return hashlib.sha256(normalised_url(url).encode("utf-8", "surrogatepass")).hexdigest()


def blocked_digests(url: str) -> set[str]:
    """SHA-256 of the address as published, asked for and normalised: lines for data_tools/links/blocklists.py."""
    forms = {url, url.strip(), normalised_url(url)}
    with suppress(LinkRefused):
        forms.add(check_link(url, Path("."), False, [host_of(url)])[0])
    return {hashlib.sha256(form.encode("utf-8", "surrogatepass")).hexdigest() for form in forms}


def caption_form(text: str) -> str:
    """A caption without what copies change: Unicode form (NFKC), case, and the amount of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def host_of(url: str | None) -> str:
    """Host of an address in small letters, or nothing."""
    try:
        return (urlsplit(url or "").hostname or "").rstrip(".")
    except ValueError:
        return ""


def inside_domain(host: str, domain: str) -> bool:
    """Whether a host is the domain or lies below it."""
    return host == domain or host.endswith("." + domain)


@dataclass(frozen=True)
class Selector:
    """One thing to look for.

    Args:
        kind: One of KINDS.
        value: Address, domain, digest, path of a picture file, or text.
        radius: Bits in which the PDQ hash of a picture may differ; of ``image``.
        match: ``exact``, ``normalised`` or ``contains``; of ``caption``.
    """

    kind: str
    value: str
    radius: int = RADIUS
    match: str = "normalised"

    def __post_init__(self) -> None:
        """Check the value before anything is read."""
        if self.kind not in KINDS:
            raise UserError(f"selector {self.kind!r} is not known: use one of {', '.join(KINDS)}")
        if not self.value.strip():
            raise UserError(f"--{self.kind} is empty: it would mean everything or nothing; give a value")
        if self.kind == "sha256" and not re.fullmatch(r"[0-9a-fA-F]{64}", self.value):
            raise UserError(f"--sha256 {self.value[:80]!r} is no SHA-256: give 64 hex digits")
        if self.kind == "domain" and "." not in (ascii_domain(self.value.strip()) or ""):
            raise UserError(f"--domain {self.value[:80]!r} is no domain: give a name such as example.org")
        if not 0 <= self.radius <= 60:
            raise UserError(f"--radius is {self.radius}: give 0 to 60 bits of 256; above, unrelated pictures match")
        if self.match not in CAPTION_MATCHES:
            raise UserError(f"--match {self.match!r} is not known: use one of {', '.join(CAPTION_MATCHES)}")

    @cached_property
    def picture(self) -> "Picture":
        """The picture file of ``image``."""
        return read_picture(Path(self.value))

    @cached_property
    def wanted(self) -> str:
        """The value in the form that is compared."""
        if self.kind == "url":
            return normalised_url(self.value)
        if self.kind == "domain":
            return ascii_domain(self.value.strip()) or ""
        if self.kind == "caption":
            return self.value.strip() if self.match == "exact" else caption_form(self.value)
        return self.picture.sha256 if self.kind == "image" else self.value.lower()

    def public(self, salt: bytes | None) -> dict[str, Any]:
        """The selector without what it holds."""
        shown: dict[str, Any] = {"kind": self.kind, "value_hash": veil(self.wanted, salt)}
        if self.kind == "image":
            shown["radius"] = self.radius
        if self.kind == "caption":
            shown["match"] = self.match
        return shown


@dataclass(frozen=True)
class Picture:
    """A picture to look for: digest of its file, its PDQ hashes in eight positions (8, 32) uint8, and their quality."""

    sha256: str
    hashes: np.ndarray
    quality: int

    @property
    def flat(self) -> bool:
        """Whether only the digest can be trusted."""
        return self.quality < LEAST_QUALITY


def read_picture(path: Path) -> Picture:
    """Read a picture file of any size below the limits."""
    try:
        content = path.read_bytes()
        pixels = decode(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a picture ({str(error)[:120]}): give a JPEG, PNG or WebP") from None
    turned = [np.ascontiguousarray(np.rot90(side, times)) for side in (pixels, pixels[:, ::-1]) for times in range(4)]
    hashed = [pdq(side) for side in turned]
    return Picture(hashlib.sha256(content).hexdigest(), np.stack([code for code, _ in hashed]), hashed[0][1])


def decode(content: bytes) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of a stored picture.

    Raises:
        OSError: It is none, or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # our own limit below comes before any pixel is decoded
    try:
        image = Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP", "GIF", "BMP"])
        if image.width * image.height > MAX_PIXELS:
            raise OSError(f"more than {MAX_PIXELS} pixels")
        return np.asarray(image.convert("RGB"))
    except OSError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds on hostile files
        raise OSError(str(error) or type(error).__name__) from None


def veil(value: str, salt: bytes | None) -> str:
    """Hash of a value for publication: SHA-256, or with a salt HMAC-SHA-256, which nobody can try guesses against."""
    raw = value.encode("utf-8", "surrogatepass")
    return hmac.new(salt, raw, hashlib.sha256).hexdigest() if salt else hashlib.sha256(raw).hexdigest()


def stored_image(members: dict[str, bytes]) -> bytes | None:
    """The image file of a sample, where it has one."""
    return next((members[name] for name in IMAGES if name in members), None)


def sample_pdq(record: dict[str, Any], content: bytes | None) -> np.ndarray | None:
    """PDQ hash (32,) of a sample: as its json says, else computed; None where there is no picture to compute it of."""
    try:
        return read_hash(record["pdq"])
    except (KeyError, TypeError, ValueError):
        pass
    if content is None:
        return None
    try:
        return pdq(decode(content))[0]
    except (OSError, ValueError):
        return None


def copies_hash(members: dict[str, bytes]) -> str | None:
    """PDQ hash by which copies of a sample's picture are known; none where it is flat, for others would be caught."""
    content = stored_image(members)
    try:
        code, quality = pdq(decode(content)) if content is not None else (None, 0)
    except (OSError, ValueError):
        return None
    return hash_text(code) if code is not None and quality >= LEAST_QUALITY else None


class Selection:
    """Several selectors at once; a sample is meant if any of them means it."""

    def __init__(self, selectors: Iterable[Selector]) -> None:
        """Sort them by what has to be looked at."""
        self.selectors = list(selectors)
        if not self.selectors:
            raise UserError("nothing to look for: give --url, --domain, --sha256, --uid, --image or --caption")
        for selector in self.selectors:
            _ = selector.wanted  # a picture that cannot be read ends the program before anything else
        self._kinds = {selector.kind for selector in self.selectors}

    def match(self, members: dict[str, bytes]) -> list[str]:
        """Reasons why a sample is meant, one for each selector that fits; empty where none does."""
        record = json.loads(members["json"])
        content = stored_image(members)
        digests = {str(record.get("sha256"))}
        if content is not None and self._kinds & {"sha256", "image"}:
            digests.add(hashlib.sha256(content).hexdigest())
        url = normalised_url(str(record.get("url") or "")) if "url" in self._kinds else ""
        code: np.ndarray | None = None
        if any(selector.kind == "image" and not selector.picture.flat for selector in self.selectors):
            code = sample_pdq(record, content)
        reasons = []
        for selector in self.selectors:
            wanted, reason = selector.wanted, None
            if selector.kind == "url" and wanted == url:
                reason = "url"
            elif selector.kind == "domain":
                if inside_domain(str(record.get("domain") or host_of(record.get("url"))), wanted):
                    reason = "domain of the image"
                elif inside_domain(host_of(record.get("page_url")), wanted):
                    reason = "domain of the page"
            elif selector.kind == "uid" and wanted == record.get("uid"):
                reason = "uid"
            elif selector.kind in ("sha256", "image") and wanted in digests:
                reason = "sha256"
            elif selector.kind == "image" and not selector.picture.flat and code is not None:
                distance = int(hamming(selector.picture.hashes, code).min())
                reason = f"picture, {distance} of 256 bits differ" if distance <= selector.radius else None
            elif selector.kind == "caption":
                reason = self._caption(record, selector)
            if reason:
                reasons.append(reason)
        return reasons

    def _caption(self, record: dict[str, Any], selector: Selector) -> str | None:
        for caption in record.get("captions") or []:
            text = str(caption.get("text") or "")
            form = text.strip() if selector.match == "exact" else caption_form(text)
            if form == selector.wanted or (selector.match == "contains" and selector.wanted in form):
                return f"caption in {caption.get('language')}, {selector.match}"
        return None
