"""The json of one sample in a final shard, made from its row in the table of links and from the image itself."""

import json
from collections.abc import Mapping
from typing import Any

from data_tools.samples.image_repair import RepairedImage

KINDS: dict[str, type] = {"captions": list, "metadata": dict, "consent": dict}


def json_fault(column: str, text: str | None) -> str | None:
    """Say what is wrong with a JSON column of the table, or nothing; an empty cell is right."""
    kind = KINDS[column]
    try:
        value: Any = json.loads(text) if text else kind()
    except (ValueError, RecursionError) as error:
        return f"{column} is no JSON ({error})"
    if not isinstance(value, kind):
        return f"{column} is no JSON {'list' if kind is list else 'object'}"
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, dict) or not all(
                isinstance(item.get(name), str) and item[name].strip() for name in ("text", "language")
            ):
                return "captions holds an entry without text or language"
    return None


def sample_record(
    source: Mapping[str, str | None],
    row: Mapping[str, Any],
    image: RepairedImage,
    crawler: str,
    moment: str | None,
    response: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fill the contract of a final sample.

    Args:
        source: The row of the table; its JSON columns have passed ``json_fault``.
        row: The ledger row, with the address to publish and the domain.
        image: The image as it is stored.
        crawler: Name of the agent that fetched it.
        moment: When it was fetched (ISO 8601), or None where the record must not depend on the clock.
        response: What the server's answers said that a second visit would find again; part of ``consent``.
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
        "fetched_at": moment,
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
