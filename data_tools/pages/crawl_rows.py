"""Make rows of the table of links and of the ledger from what was read in a page."""

import json
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from data_tools.links.language_vote import UNDETERMINED, vote
from data_tools.links.link_columns import OPTIONAL, REQUIRED
from data_tools.pages.page_licences import Statement
from data_tools.pages.page_links import PageLink, PageReading, link_evidence, speaks_for
from data_tools.pages.warc_pages import Page, PageRefused
from data_tools.rights.licence_address import Licence, read_licence, strictest
from leam_mm.data.ledger import evidence_text, link_uid

LINK_SCHEMA = pa.schema([(name, pa.string()) for name in (*REQUIRED, *OPTIONAL)])
AUTHORS = ("creditText", "creator", "copyrightNotice", "copyrightHolder")


def link_rows(page: Page, reading: PageReading, source: str, suggest_basis: bool) -> list[dict[str, Any]]:
    """Return a row for each image, as in ``LINK_SCHEMA``.

    Args:
        page: The page.
        reading: What was found in it.
        source: Name of the source, or empty.
        suggest_basis: Whether a licence may set the legal basis.
    """
    page_language = reading.language if reading.language != UNDETERMINED else None
    texts = [(text, stated or page_language) for link in reading.links for text, _, stated in link.captions]
    languages = iter(vote([text for text, _ in texts], [expected for _, expected in texts]))
    rows = []
    for link in reading.links:
        captions = [
            {"text": text, "language": next(languages).language, "source": origin, "machine_translated": False}
            for text, origin, _ in link.captions
        ]
        # The page of another site does not speak for the owner of the image: link_evidence keeps what it claims.
        own = speaks_for(page, link)
        licence = image_licence(link) if own else None
        evidence = link_evidence(page, reading, link)
        reserved = bool(reading.linked_terms) or any(signal["reserved"] for signal in evidence["page_rights"])
        basis = licence.basis if licence and suggest_basis and not reserved else None
        rows.append(
            {
                "url": link.url,
                "caption": captions[0]["text"],
                "captions": json.dumps(captions, ensure_ascii=False),
                "licence": licence.name if licence else None,
                "legal_basis": basis.value if basis else None,
                "page_url": page.url,
                "attribution": attribution(link.statements) if own else None,
                "metadata": evidence_text({"page_title": reading.title, "page_language_by": reading.language_source}),
                "consent": evidence_text(evidence),
                "language": reading.language,
                "uid": link_uid(link.url, page.url, str(captions[0]["text"])),
                "source": source or None,
            }
        )
    return rows


def image_licence(link: PageLink) -> Licence | None:
    """Return the strictest licence that the page names for this very image; text that is no address allows nothing."""
    named = [one.fields["license"] for one in link.statements if "license" in one.fields]
    return strictest([read_licence(text) or Licence(text, text, None) for text in named])


def attribution(statements: list[Statement]) -> str | None:
    """Return the names to credit: credit line, creator, copyright notice and holder, each once."""
    names = [one.fields[name] for one in statements for name in AUTHORS if name in one.fields]
    return "; ".join(dict.fromkeys(names)) or None


def page_row(page: Page, outcome: PageReading | PageRefused) -> dict[str, Any]:
    """Return the page's row of the ledger."""
    evidence: dict[str, Any] = {"archive": page.archive, "record": page.record}
    try:
        domain = urlsplit(page.url).hostname
    except ValueError:
        domain = None
    row = {"uid": link_uid(page.url, None, None), "url": page.url, "domain": domain, "fetched_at": page.date}
    if isinstance(outcome, PageRefused):
        decision = {"rule": outcome.rule, "value": outcome.value, "kept": False, "reason": outcome.reason}
        return row | decision | {"evidence": evidence}
    evidence |= {"skipped_images": dict(sorted(outcome.skipped.items()))} if outcome.skipped else {}
    reserving = sorted({signal.kind for signal in outcome.signals if signal.reserved})
    evidence |= {"reserving": reserving} if reserving else {}
    found = {"rule": "read", "value": f"{len(outcome.links)} links", "kept": True, "reason": ""}
    return row | found | {"bytes": len(page.content), "language": outcome.language, "evidence": evidence}
