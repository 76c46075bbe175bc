"""Open a sample of an untrusted shard: check its key, members, json, captions and image, or say what is wrong.

An opened sample has a plain key, only members of that name, a json that keeps the contract of a final sample, texts in
valid Unicode, and one image that decodes within the limits.
"""

import json
from typing import Any

from data_tools.vetting.vetting_rule import Sample
from data_tools.work.foreign_error import first_line
from data_tools.work.time_limit import TimeLimit, TookTooLong
from leam_mm.data.image_file import open_image
from leam_mm.data.ledger import link_uid
from leam_mm.data.tar_members import checked_members
from leam_mm.errors import UserError

IMAGES = ("jpg", "png", "webp")
MAX_SAMPLE = 256_000_000  # bytes of all members
MAX_RECORD = 4_000_000  # bytes of the json
MAX_CAPTION = 50_000  # characters
MAX_CAPTIONS = 1000
MAX_TEXT = 4000  # characters of an address in the ledger
TEXTS = ("uid", "url", "page_url", "domain", "sha256", "licence", "legal_basis", "fetched_at")


class SampleFault(Exception):
    """A sample that cannot be judged.

    Args:
        value: The part that is wrong, for the ledger.
        reason: What is wrong, in words.
    """

    def __init__(self, value: str, reason: str) -> None:
        """See the class for the arguments."""
        super().__init__(reason)
        self.value, self.reason = value, reason


def open_sample(key: Any, raw: bytes) -> Sample:
    """Check and decode one sample.

    Args:
        key: Its key in the index.
        raw: Its members with their headers, of which the caller has compared the digest.

    Raises:
        SampleFault: The sample is broken, exceeds a limit, or has a name that is a path.
    """
    if not isinstance(key, str) or not key or len(key.encode()) > 80 or not key.isprintable() or set(key) & set("/.\\"):
        raise SampleFault("key", f"key {str(key)[:80]!r} is no plain name")
    members = _read_members(key, raw)
    record = _read_record(members)
    kinds = [kind for kind in IMAGES if kind in members]
    if len(kinds) != 1:
        raise SampleFault("image", f"holds {len(kinds)} images, should hold one")
    sample = Sample(key, record, kinds[0], members[kinds[0]])
    _decode(sample)
    return sample


def _read_members(key: str, raw: bytes) -> dict[str, bytes]:
    try:
        return checked_members(key, raw)
    except ValueError as error:
        raise SampleFault("member", first_line(error)) from None
    except UserError as error:
        raise SampleFault("tar", first_line(error)) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _read_record(members: dict[str, bytes]) -> dict[str, Any]:
    raw = members.get("json")
    if raw is None:
        raise SampleFault("json", "has no json")
    if len(raw) > MAX_RECORD:
        raise SampleFault("json", f"its json has more than {MAX_RECORD} bytes")
    try:
        record = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\u" in raw:  # only an escape can spell half a surrogate pair, which UTF-8 cannot store
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise SampleFault("json", f"its json cannot be read: {first_line(error)}") from None
    captions = record.get("captions") if isinstance(record, dict) else None
    if not isinstance(captions, list) or not 0 < len(captions) <= MAX_CAPTIONS:
        raise SampleFault("captions", f"its json has no list of 1 to {MAX_CAPTIONS} captions")
    for caption in captions:
        parts = (caption.get("text"), caption.get("language")) if isinstance(caption, dict) else (None, None)
        if not all(isinstance(part, str) and part.strip() and len(part) <= MAX_CAPTION for part in parts):
            raise SampleFault("captions", "a caption has no text or language, or is far too long")
    return record


def _decode(sample: Sample) -> None:
    try:
        with TimeLimit():
            _decode_all(sample)
    except TookTooLong as error:
        raise SampleFault("seconds", str(error)) from None
    except Exception as error:  # Pillow raises many types on damaged and hostile files
        raise SampleFault("image", f"its image cannot be decoded: {first_line(error)}") from None


def _decode_all(sample: Sample) -> None:
    if sample.content.startswith(b"\x89PNG"):  # Pillow opens a PNG without its end or with wrong checksums
        open_image(sample.content, ("PNG",)).verify()
    assert sample.pixels.size


def ledger_columns(sample: Sample) -> dict[str, Any]:
    """Return the ledger's columns about a sample; values of a wrong type become None."""
    record, (height, width) = sample.record, sample.pixels.shape[:2]
    text = {name: record[name][:MAX_TEXT] if isinstance(record.get(name), str) else None for name in TEXTS}
    first = sample.captions[0]
    return {
        "key": sample.key,
        "uid": text["uid"] or link_uid(text["url"], text["page_url"], first["text"]),
        "width": width,
        "height": height,
        "bytes": len(sample.content),
        "language": first["language"][:35],  # length of the longest tag of RFC 5646
        **{name: text[name] for name in ("url", "domain", "sha256", "licence", "legal_basis", "fetched_at")},
    }
