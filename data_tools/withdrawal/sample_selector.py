"""Select samples by address, domain, digest, image or caption.

``Selection.match`` returns the reasons why a stored sample is selected, so that a person can check a dry run. The
values of selectors need not be published: ``Selector.public`` contains only their hashes.
"""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.links.blocklists import ascii_domain
from data_tools.links.withdrawn_lists import LEAST_QUALITY, RADIUS
from data_tools.network.link_address import LinkRefused, address_key, check_link, host_of, normal_url
from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MEMBER_EXTENSIONS, WEB_FORMATS
from leam_mm.data.perceptual_hash import hamming, hash_text, pdq, read_hash
from leam_mm.data.sample_json import read_sample_json
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256

LARGEST_RADIUS = 60  # bits of 256; above, unrelated images match
KINDS = ("url", "domain", "sha256", "uid", "image", "caption")
CAPTION_MATCHES = ("exact", "normalised", "contains")


def url_digest(url: str) -> str:
    """Return the SHA-256 of the normalised address, as hex digits."""
    return published_hash(normal_url(url), None)


def blocked_digests(url: str) -> set[str]:
    """Return the SHA-256 of all forms of an address that links/withdrawn_lists.py compares."""
    forms = {url, url.strip(), normal_url(url), address_key(url)}
    with suppress(LinkRefused):
        forms.add(check_link(url, Path("."), False, [host_of(url)])[0])
    return {published_hash(form, None) for form in forms}


def caption_form(text: str) -> str:
    """Return a caption without differences in Unicode form (NFKC), case, and amount of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def inside_domain(host: str, domain: str) -> bool:
    """Return whether a host is the domain or one of its subdomains."""
    return host == domain or host.endswith("." + domain)


@dataclass(frozen=True)
class Selector:
    """One value to look for.

    Args:
        kind: One of ``KINDS``.
        value: Address, domain, digest, path of an image file, or text.
        radius: Bits of 256 in which the PDQ hash of a copy may differ; for kind ``image``.
        match: ``exact``, ``normalised`` or ``contains``; for kind ``caption``.
    """

    kind: str
    value: str
    radius: int = RADIUS
    match: str = "normalised"

    def __post_init__(self) -> None:
        """Check the value before anything is read."""
        if self.kind not in KINDS:
            raise UserError(f"selector {self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if not self.value.strip():
            raise UserError(f"--{self.kind} is empty: give a value")
        if self.kind == "sha256" and not is_sha256(self.value):
            raise UserError(f"--sha256 {self.value[:80]!r} is not a SHA-256: give 64 hex digits")
        if self.kind == "domain" and "." not in (ascii_domain(self.value.strip()) or ""):
            raise UserError(f"--domain {self.value[:80]!r} is not a domain: give a name such as example.org")
        if not 0 <= self.radius <= LARGEST_RADIUS:
            raise UserError(f"--radius is {self.radius}: give 0 to {LARGEST_RADIUS}; above, unrelated images match")
        if self.match not in CAPTION_MATCHES:
            raise UserError(f"--match {self.match!r} is unknown: use one of {', '.join(CAPTION_MATCHES)}")

    @cached_property
    def image(self) -> "QueryImage":
        """The image file, for kind ``image``."""
        return read_image(Path(self.value))

    @cached_property
    def wanted(self) -> str:
        """The value in the form in which it is compared."""
        if self.kind == "url":
            return normal_url(self.value)
        if self.kind == "domain":
            return ascii_domain(self.value.strip()) or ""
        if self.kind == "caption":
            return self.value.strip() if self.match == "exact" else caption_form(self.value)
        return self.image.sha256 if self.kind == "image" else self.value.lower()

    def public(self, salt: bytes | None) -> dict[str, Any]:
        """Return the selector with a hash in place of its value."""
        shown: dict[str, Any] = {"kind": self.kind, "value_hash": published_hash(self.wanted, salt)}
        if self.kind == "image":
            shown["radius"] = self.radius
        if self.kind == "caption":
            shown["match"] = self.match
        return shown


@dataclass(frozen=True)
class QueryImage:
    """An image to look for.

    Args:
        sha256: Digest of its file.
        hashes: (8, 32) uint8, PDQ hashes of its eight orientations.
        quality: PDQ quality, 0 to 100.
    """

    sha256: str
    hashes: np.ndarray
    quality: int

    @property
    def flat(self) -> bool:
        """Whether the image has too little structure for its PDQ hash; only the digest identifies it."""
        return self.quality < LEAST_QUALITY


def read_image(path: Path) -> QueryImage:
    """Read an image file.

    Raises:
        UserError: It cannot be read or is too large.
    """
    try:
        content = path.read_bytes()
        pixels = decode(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image ({str(error)[:120]}): give a JPEG, PNG or WebP") from None
    turned = [np.ascontiguousarray(np.rot90(side, times)) for side in (pixels, pixels[:, ::-1]) for times in range(4)]
    hashed = [pdq(side) for side in turned]
    return QueryImage(bytes_sha256(content), np.stack([code for code, _ in hashed]), hashed[0][1])


def decode(content: bytes) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8.

    Raises:
        OSError: It is not an image, or too large.
    """
    try:
        return np.asarray(open_image(content, WEB_FORMATS).convert("RGB"))
    except OSError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds on hostile files
        raise OSError(str(error) or type(error).__name__) from None


def is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in hex digits."""
    return re.fullmatch(r"[0-9a-fA-F]{64}", text) is not None


def published_hash(value: str, salt: bytes | None) -> str:
    """Return the hash of a value for publication: SHA-256, or HMAC-SHA-256 with a salt, which prevents guessing."""
    raw = value.encode("utf-8", "surrogatepass")
    return hmac.new(salt, raw, hashlib.sha256).hexdigest() if salt else bytes_sha256(raw)


def stored_image(members: dict[str, bytes]) -> bytes | None:
    """Return the image file of a sample, if it has one."""
    return next((members[name] for name in MEMBER_EXTENSIONS if name in members), None)


def sample_pdq(record: dict[str, Any], content: bytes | None) -> np.ndarray | None:
    """Return the PDQ hash (32,) uint8 of a sample, from its JSON or else its image; None without a readable image."""
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
    """Return the PDQ hash that finds copies of a sample's image; None if it is flat, which would match other images."""
    content = stored_image(members)
    try:
        code, quality = pdq(decode(content)) if content is not None else (None, 0)
    except (OSError, ValueError):
        return None
    return hash_text(code) if code is not None and quality >= LEAST_QUALITY else None


class Selection:
    """Several selectors; a sample is selected if any of them matches it.

    Args:
        selectors: At least one.
    """

    def __init__(self, selectors: Iterable[Selector]) -> None:
        """Read the image files; see the class for the arguments."""
        self.selectors = list(selectors)
        if not self.selectors:
            raise UserError("nothing to look for: give --url, --domain, --sha256, --uid, --image or --caption")
        for selector in self.selectors:
            _ = selector.wanted  # an unreadable image file ends the program before anything else
        self._kinds = {selector.kind for selector in self.selectors}

    def match(self, members: dict[str, bytes]) -> list[str]:
        """Return the reasons why a sample is selected, one for each selector that matches.

        Raises:
            UserError: Its json is damaged.
        """
        record = read_sample_json(members)
        content = stored_image(members)
        digests = {str(record.get("sha256"))}
        if content is not None and self._kinds & {"sha256", "image"}:
            digests.add(bytes_sha256(content))
        url = normal_url(str(record.get("url") or "")) if "url" in self._kinds else ""
        code: np.ndarray | None = None
        if any(selector.kind == "image" and not selector.image.flat for selector in self.selectors):
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
            elif selector.kind == "image" and not selector.image.flat and code is not None:
                distance = int(hamming(selector.image.hashes, code).min())
                # "picture" becomes the rule in ledgers.
                reason = f"picture, {distance} of 256 bits differ" if distance <= selector.radius else None
            elif selector.kind == "caption":
                reason = self._caption(record, selector)
            if reason:
                reasons.append(reason)
        return reasons

    def _caption(self, record: dict[str, Any], selector: Selector) -> str | None:
        captions = record.get("captions")
        for caption in captions if isinstance(captions, list) else []:
            if not isinstance(caption, dict):
                continue
            text = str(caption.get("text") or "")
            form = text.strip() if selector.match == "exact" else caption_form(text)
            if form == selector.wanted or (selector.match == "contains" and selector.wanted in form):
                return f"caption in {caption.get('language')}, {selector.match}"
        return None
