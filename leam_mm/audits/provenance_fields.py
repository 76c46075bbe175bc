"""Fields that say where a sample comes from, and when each of them is filled and valid."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from leam_mm.audits.licence_names import is_licence_address, is_spdx
from leam_mm.audits.opt_out_status import legal_basis, opt_out_status
from leam_mm.data.legal_basis import LegalBasis

DIGEST, UID, LANGUAGE = (
    re.compile(form) for form in ("[0-9a-f]{64}", "[0-9a-f]{32}", r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:.+", re.IGNORECASE | re.DOTALL)
NO_LANGUAGE = ("und", "zxx", "mis", "mul")  # ISO 639-2: undetermined, none, without a code, several
# A use that the law allows has no licence: the legal basis takes its place.
WITHOUT_LICENCE = (LegalBasis.art3_research, LegalBasis.art4_general)
FIRST_DATE = datetime(1990, 1, 1, tzinfo=UTC)  # earlier than any web page
ONE_DAY = timedelta(days=1)  # between clocks and time zones

Record = Mapping[str, Any]


def field_states(record: Record, collected: datetime | None) -> dict[str, bool]:
    """Return whether each field of a sample is filled and valid.

    Args:
        record: Its json; empty if it cannot be read.
        collected: When it was collected; None if nothing says.
    """
    states = {name: bool(record) and check(record) for name, check in CHECKS.items()}
    now = datetime.now(UTC)
    return states | {"collection date": collected is not None and FIRST_DATE <= collected <= now + ONE_DAY}


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    return value.strip() if isinstance(value, str) else ""


def _source(record: Record) -> bool:
    consent = record.get("consent")
    agreement = consent.get("agreement") if isinstance(consent, dict) else None
    holder = agreement.get("rights_holder") if isinstance(agreement, dict) else None
    return bool(_text(record, "domain") or _text(record, "attribution") or (isinstance(holder, str) and holder.strip()))


def _identifier(record: Record) -> bool:
    return bool(SCHEME.fullmatch(_text(record, "url")) or UID.fullmatch(_text(record, "uid")))


def _licence(record: Record) -> bool:
    licence = _text(record, "licence")
    if not licence:
        return legal_basis(record) in WITHOUT_LICENCE
    return is_spdx(licence) or is_licence_address(licence)


def _language(record: Record) -> bool:
    captions = record.get("captions")
    if not isinstance(captions, list) or not captions:
        return False
    languages = [caption.get("language") if isinstance(caption, dict) else None for caption in captions]
    return all(isinstance(one, str) and LANGUAGE.fullmatch(one) and one not in NO_LANGUAGE for one in languages)


def _chain(record: Record) -> bool:
    transforms = record.get("transforms")
    return isinstance(transforms, list) and all(isinstance(one, str) and one for one in transforms)


CHECKS: dict[str, Callable[[Record], bool]] = {
    "source": _source,
    "url or id": _identifier,
    "licence": _licence,
    "sha256": lambda record: bool(DIGEST.fullmatch(_text(record, "sha256"))),
    "language": _language,
    "opt-out status": lambda record: opt_out_status(record)[0] != "unknown",
    "processing chain": _chain,
}
