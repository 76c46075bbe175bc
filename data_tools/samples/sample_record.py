"""The JSON record of a sample in a final shard, from its row in the table of links and its image."""

import json
from collections.abc import Mapping
from typing import Any

from data_tools.samples.caption_forms import captions_fault
from data_tools.samples.image_repair import RepairedImage
from data_tools.work.foreign_error import first_line
from leam_mm.json_text import parse_json

KINDS: dict[str, type] = {"captions": list, "metadata": dict, "consent": dict}


def json_fault(column: str, text: str | None) -> str | None:
    """Describe what is wrong with a JSON cell of the table, or return None; an empty cell is valid."""
    kind = KINDS[column]
    try:
        value: Any = parse_json(text) if text else kind()
    except ValueError as error:
        return f"{column} is no JSON ({first_line(error)})"
    if not isinstance(value, kind):
        if kind is list and (fault := captions_fault(text or "")):
            return fault
        return f"{column} is no JSON {'list' if kind is list else 'object'}"
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, dict) or not all(
                isinstance(item.get(name), str) and item[name].strip() for name in ("text", "language")
            ):
                return captions_fault(text or "") or "captions holds an entry without text or language"
    return None


def sample_record(
    source: Mapping[str, str | None],
    row: Mapping[str, Any],
    image: RepairedImage,
    crawler: str,
    fetched_at: str | None,
    response: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record of a final sample.

    Args:
        source: The row of the table; its JSON columns are valid by ``json_fault``.
        row: The ledger row, with the address to publish and the domain.
        image: The stored image.
        crawler: Name of the agent that fetched it.
        fetched_at: Time of the request (ISO 8601), or None if the record must not depend on it.
        response: Evidence in the server's answers that a second visit would find again; part of ``consent``.
    """
    text, language = (source["caption"] or "").strip(), source.get("language") or "und"
    alt = {"text": text, "language": language, "source": "alt", "machine_translated": False}
    consent = json.loads(source.get("consent") or "{}")
    if response:
        consent["response"] = dict(response)
    return {
        "uid": row["uid"],
        "captions": json.loads(source.get("captions") or "[]") or [alt],
        "url": row["url"],
        "page_url": source.get("page_url"),
        "domain": row["domain"],
        "licence": source.get("licence"),
        "legal_basis": source.get("legal_basis"),
        "attribution": source.get("attribution"),
        "crawler": crawler,
        "fetched_at": fetched_at,
        "sha256": image.sha256,
        "pdq": None,
        "width": image.width,
        "height": image.height,
        "original_width": image.original_width,
        "original_height": image.original_height,
        "transforms": image.transforms,
        "consent": consent,
        "metadata": json.loads(source.get("metadata") or "{}"),
    }
