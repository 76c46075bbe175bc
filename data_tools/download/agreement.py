"""The agreement under which images of an institution may be used, and the table of links that carries it."""

import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.links.image_folder import REFUSED, Fault, FolderColumns, ImageFolder
from data_tools.work.text_tables import TOO_LONG
from leam_mm.data.ledger import link_uid
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

DOCUMENTED = (LegalBasis.licensed, LegalBasis.consent)  # these need a signed document
BASES = (*DOCUMENTED, LegalBasis.synthetic, LegalBasis.public_domain)


@dataclass(kw_only=True)
class AgreementSettings(FolderColumns):
    """What allows the use of the images.

    Args:
        legal_basis: licensed, consent, synthetic or public_domain.
        licence: Licence of the images, as SPDX identifier or address.
        rights_holder: Who may allow the use; becomes the attribution.
        purpose: What the use is allowed for, in the words of the agreement.
        evidence: Contract or consent, as a file; may be repeated.
        until: Day on which the agreement ends, YYYY-MM-DD.
        generator: What made the images, with its version, for synthetic ones.
    """

    legal_basis: str
    licence: str
    rights_holder: str
    purpose: str
    evidence: list[Path] = field(default_factory=list)
    until: str = ""
    generator: str = ""


def read_agreement(settings: AgreementSettings) -> dict[str, Any]:
    """Return the agreement as it is stored in every sample.

    Raises:
        UserError: The legal basis is none of ``BASES``, or something is missing that it needs.
    """
    basis = LegalBasis.of(settings.legal_basis)
    if basis not in BASES:
        raise UserError(f"--legal-basis {basis} is for links to strangers' pages; here use one of {', '.join(BASES)}")
    if basis in DOCUMENTED and not settings.evidence:
        raise UserError(f"--evidence is missing: the legal basis {basis} needs the contract or consent, as a file")
    if basis is LegalBasis.synthetic and not settings.generator:
        raise UserError("--generator is missing: give name and version of what made the images")
    for name in ("licence", "rights_holder", "purpose"):
        if not getattr(settings, name).strip():
            raise UserError(f"--{name.replace('_', '-')} is empty: state it, it is published with the images")
    try:
        until = str(date.fromisoformat(settings.until)) if settings.until else None
    except ValueError:
        raise UserError(f"--until is {settings.until!r}: write it as YYYY-MM-DD") from None
    agreement = {
        "legal_basis": str(basis),
        "licence": settings.licence.strip(),
        "rights_holder": settings.rights_holder.strip(),
        "purpose": settings.purpose.strip(),
        "until": until,
        "generator": settings.generator or None,
        "documents": [
            {"name": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size} for path in settings.evidence
        ],
    }
    return {name: value for name, value in agreement.items() if value}


def agreed_links(
    images: ImageFolder, agreement: dict[str, Any], language: str, refused: dict[str, Fault] | None = None
) -> pa.Table:
    """Return the table of links of a staged folder, with rights and agreement in every row.

    Args:
        images: The staged folder.
        agreement: The agreement, as `read_agreement` returns it.
        language: Language of the captions where a table does not say.
        refused: Faults by address of images that are not gathered. They get a row, too; images of the folder that
            cannot be used are added.

    Raises:
        UserError: A row states a legal basis that the agreement does not cover, or an address outside the folder.
    """
    refused = {} if refused is None else refused
    rows = images.table(lenient=True).to_pylist()
    for row in rows:
        if fault := row.get(TOO_LONG):
            refused.setdefault(row["url"], Fault("file", "", fault))
        elif fault := row.get(REFUSED):
            refused.setdefault(row["url"], Fault(*json.loads(fault)))
    rows += [{"url": url, "caption": None} for url in sorted(refused.keys() - {row["url"] for row in rows})]
    for row in rows:
        if not str(row["url"]).startswith("file:") or str(row["url"]).startswith("file:/"):
            raise UserError(f"the table of captions names {row['url']}: give file names relative to its folder")
        basis = LegalBasis.of(row.get("legal_basis"), LegalBasis(agreement["legal_basis"]))
        if basis not in BASES or (basis in DOCUMENTED and "documents" not in agreement):
            raise UserError(
                f"{row['url']}: the table says {basis}, for which there is no --evidence: gather it separately"
            )
        own = {"legal_basis": str(basis), "licence": (row.get("licence") or "").strip() or agreement["licence"]}
        holder = (row.get("attribution") or "").strip() or agreement["rights_holder"]
        row.update(own, attribution=holder, language=(row.get("language") or "").strip() or language)
        if not row.get("captions"):
            text = (row["caption"] or "").strip()
            caption = {"text": text, "language": row["language"], "source": "provided", "machine_translated": False}
            row["captions"] = json.dumps([caption], ensure_ascii=False, sort_keys=True) if text else None
        row["consent"] = json.dumps({"agreement": agreement | own | {"rights_holder": holder}}, sort_keys=True)
        # With the rights holder, because institutions use the same file names and a link's name must be unique.
        row["uid"] = link_uid(f"{holder}/{row['url']}", None, row["caption"])
    names = ["url", "caption", "captions", "licence", "legal_basis", "attribution", "language", "consent", "uid"]
    names += [name for name in ("page_url", "metadata") if any(row.get(name) for row in rows)]
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})
