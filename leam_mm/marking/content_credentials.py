"""Content credentials (C2PA) of generated images: the one file that reads and writes them.

A manifest inside the file says that a trained model made the image, which one, and when; a signature covers the
manifest and every other byte of the file (C2PA Technical Specification 2.2). Any program that encodes the image again
drops it, so that signing is the last write. Nothing here opens a connection: certificates are not looked up, no
time-stamping service is asked, manifests at other addresses are not fetched, and no host is allowed to the library.
"""

import datetime
import io
import json
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import c2pa

from leam_mm.marking.signing_key import SigningKey

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
DETAILS = "org.leam-mm.generator"  # label of our own assertion
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"}
PARENT = "source"
SETTINGS: dict[str, Any] = {
    "core": {"allowed_network_hosts": [], "max_decompressed_manifest_size_in_mb": 16},
    "verify": {"ocsp_fetch": False, "remote_manifest_fetch": False, "verify_after_sign": False, "verify_trust": True},
    "builder": {"thumbnail": {"enabled": False}},  # no smaller copy of the image that was edited
}
MAX_MANIFEST = 16_000_000  # characters of a manifest that is read


class UnreadableCredentials(ValueError):
    """The manifest of a file is damaged, or larger than the limits."""


@dataclass(frozen=True)
class Origin:
    """What a manifest says about the image.

    Args:
        model: Name of the generator.
        sha256: Digest of its checkpoint or release; "" if unknown.
        marks: Names of the watermarks in the pixels.
        when: Time of the generation; None takes that of signing.
        source: File of the image that was edited; its own manifest is kept.
        source_format: Pillow's name of its format.
    """

    model: str
    sha256: str = ""
    marks: tuple[str, ...] = ()
    when: datetime.datetime | None = None
    source: bytes | None = field(default=None, repr=False)
    source_format: str = "PNG"


@dataclass(frozen=True)
class Credentials:
    """What the manifest of a file says.

    Args:
        state: "Trusted", "Valid" (unchanged since it was signed; the signer is not on a trust list), or "Invalid".
        generated: Whether it says that a trained model made the image, or a part of it.
        signer: Name in the certificate.
        program: Program that wrote it.
        model: Name of the model; "" if it names none.
        sha256: Digest of the model; "" if it names none.
        when: Time as written; "" if none is.
        ingredients: Titles of the images it was made from.
        problems: What a reader found wrong, such as a changed pixel.
    """

    state: str
    generated: bool
    signer: str
    program: str
    model: str
    sha256: str
    when: str
    ingredients: tuple[str, ...]
    problems: tuple[str, ...]


@lru_cache(maxsize=1)
def _context() -> c2pa.Context:
    return c2pa.Context.from_dict(SETTINGS)


def program_version() -> str:
    """Return the installed version of leam_mm, or 0 if it runs from a folder."""
    try:
        return version("leam_mm")
    except PackageNotFoundError:
        return "0"


def sign(image: bytes, kind: str, origin: Origin, key: SigningKey, title: str) -> bytes:
    """Return an image file with a signed manifest.

    Args:
        image: The file.
        kind: Pillow's name of its format, one of ``MIME``.
        origin: What the manifest says.
        key: Key that signs.
        title: Name of the image in the manifest.

    Raises:
        UnreadableCredentials: The library refuses the image or its source, for instance because the manifest of the
            source is damaged.
    """
    when = (origin.when or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    agent = {"name": origin.model} | ({"version": origin.sha256} if origin.sha256 else {})
    own = {"when": when, "softwareAgent": agent, "digitalSourceType": GENERATED if origin.source is None else EDITED}
    actions: list[dict[str, Any]] = [{"action": "c2pa.created", **own}]
    if origin.source is not None:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}}
        actions = [opened, {"action": "c2pa.edited", **own}]
    actions += [{"action": "c2pa.watermarked.unbound", "when": when, "description": mark} for mark in origin.marks]
    details = {"model": origin.model, "sha256": origin.sha256, "watermarks": list(origin.marks)}
    definition = {
        "claim_generator_info": [{"name": "leam_mm", "version": program_version()}], "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}}, {"label": DETAILS, "data": details}
        ],
    }  # fmt: skip
    target = io.BytesIO()
    try:
        signer = c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(key.algorithm, key.chain.encode(), key.private.encode(), None)
        )
        with signer, c2pa.Builder(definition, _context()) as builder:
            if origin.source is not None:
                about = {"title": "image that was edited", "relationship": "parentOf", "label": PARENT}
                builder.add_ingredient(about, MIME[origin.source_format], io.BytesIO(origin.source))
            builder.sign(signer, MIME[kind], io.BytesIO(image), target)
    except c2pa.C2paError as error:
        raise UnreadableCredentials(_short(error)) from None
    return target.getvalue()


def read(image: bytes, kind: str) -> Credentials | None:
    """Return what the manifest of an image file says, checked offline; None if it has none.

    Args:
        image: The file, of bounded size.
        kind: Pillow's name of its format.

    Raises:
        UnreadableCredentials: The manifest is damaged or too large.
    """
    if kind not in MIME:
        return None
    try:
        with c2pa.Reader(MIME[kind], io.BytesIO(image), context=_context()) as reader:
            text = reader.json()
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        raise UnreadableCredentials(_short(error)) from None
    if len(text) > MAX_MANIFEST:
        raise UnreadableCredentials(f"more than {MAX_MANIFEST} characters")
    try:
        return _credentials(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableCredentials(f"unexpected content ({_short(error)})") from None


def _credentials(found: dict[str, Any]) -> Credentials:
    manifest = found["manifests"][found["active_manifest"]]
    assertions = {str(each["label"]): each["data"] for each in manifest.get("assertions", [])}
    actions = [action for label, data in assertions.items() if label.startswith("c2pa.actions")
               for action in data["actions"]]  # fmt: skip
    made: dict[str, Any] = next(
        (action for action in actions if action.get("digitalSourceType") in (GENERATED, EDITED)), {}
    )
    agent = made.get("softwareAgent") or {}
    agent = agent if isinstance(agent, dict) else {"name": agent}
    details = assertions.get(DETAILS) or {}
    program = (manifest.get("claim_generator_info") or [{}])[0]
    signature = manifest.get("signature_info") or {}
    status = found.get("validation_status") or []
    return Credentials(
        state=str(found.get("validation_state")), generated=bool(made),
        signer=_text(signature.get("common_name") or signature.get("issuer")),
        program=_text(f"{program.get('name', '')} {program.get('version', '')}"),
        model=_text(details.get("model") or agent.get("name")), sha256=_text(details.get("sha256")),
        when=_text(made.get("when")),
        ingredients=tuple(_text(each.get("title")) for each in manifest.get("ingredients", [])[:20]),
        problems=tuple(_text(f"{each.get('code')}: {each.get('explanation')}") for each in status[:20]),
    )  # fmt: skip


def _text(value: Any) -> str:
    """Return a stranger's text in one printable line of bounded length."""
    text = " ".join(str(value if value is not None else "").split())[:300]
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _short(error: BaseException) -> str:
    return _text(str(error) or type(error).__name__)[:200]
