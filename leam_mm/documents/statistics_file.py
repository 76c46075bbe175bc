"""What other programs may rely on in statistics that were read from a file, which a stranger may have written."""

from typing import Any

NUMBERS = ("samples", "captions", "image_bytes", "text_bytes", "words", "domain_count")
COUNTERS = (
    *("languages", "samples_by_language", "machine_translated", "caption_sources", "licence", "legal_basis"),
    *("crawler", "formats", "sides", "shapes", "transforms", "consent", "months", "crawl_months"),
)


def checked_statistics(found: Any) -> dict[str, Any]:
    """Return statistics after a check of their types.

    Raises:
        ValueError: Something is of another type; the message says what.
        KeyError: Something is missing.
    """
    record = _object(found, "statistics")
    for name in NUMBERS:
        _count(record.get(name), name)
    for name in COUNTERS:
        for value, count in _object(record.get(name), name).items():
            _count(count, f"{name}.{value[:40]}")
    for name in (*record["months"], *record["crawl_months"]):
        if len(name) != 7 or not (name[:4] + name[5:]).isdigit() or name[4] != "-":
            raise ValueError(f"months names {name[:40]!r}, not YYYY-MM")
    for entry in _list(record.get("data_sets"), "data_sets"):
        one = _object(entry, "data_sets")
        if not isinstance(one.get("name"), str) or not isinstance(one.get("merkle_root"), str):
            raise ValueError("data_sets has an entry without name or merkle_root")
        _count(one.get("samples"), "data_sets.samples")
    for entry in _list(record.get("stages"), "stages"):
        one = _object(entry, "stages")
        if not isinstance(one.get("stage"), str):
            raise ValueError("stages has an entry without a name")
        for name in ("given", "kept"):
            _count(one.get(name), f"stages.{name}")
        for rule, count in _object(one.get("dropped"), "stages.dropped").items():
            _count(count, f"stages.dropped.{rule[:40]}")
    accounting = _object(record.get("accounting"), "accounting")
    for known in (accounting["withdrawn"], record["duplicates_removed"]):
        if known is not None:
            _count(known, "withdrawn or duplicates_removed")
    if record.get("domain_bytes") not in ("fetched", "stored", "fetched where known"):
        raise ValueError("domain_bytes is none of its words")
    return record


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no mapping")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _count(value: Any, name: str) -> None:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{name} is no count")
