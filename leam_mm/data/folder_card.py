"""The README.md of a shard folder: what is in it, and how Hugging Face ``datasets`` opens it without our code.

Its front matter declares the tars and the type of each field, because ``datasets`` otherwise takes the parquet files of
the indexes for the data, and guesses types from the first samples, where a field may be empty. All numbers are counted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import yaml

from leam_mm.data.array_format import parse_array
from leam_mm.data.image_limits import MEMBER_EXTENSIONS
from leam_mm.data.index_file import ShardIndex, index_name, read_index
from leam_mm.data.open_shard import read_range
from leam_mm.data.parquet_file import ERRORS, open_parquet
from leam_mm.data.shard_manifest import BLOCK, ShardEntry, merkle_root
from leam_mm.data.shard_places import TARS
from leam_mm.data.tar_members import member_header
from leam_mm.files import write_text
from leam_mm.json_text import parse_object

CARD = "README.md"
MARK = "<!-- leam_mm: written by the program that wrote the shards -->"
LEDGER = "ledger.parquet"
NOT_STATED = "not stated"
SHOWN = 20  # values of a kind; a table may have thousands of licences
TEXTS = (
    *("uid", "url", "page_url", "domain", "licence", "legal_basis", "attribution", "crawler", "fetched_at"),
    *("sha256", "pdq"),
)  # fields of the json that are a text or empty
SIDES = ("width", "height", "original_width", "original_height")
CAPTION = {"text": "string", "language": "string", "source": "string", "machine_translated": "bool"}


@dataclass
class CardCounts:
    """What is counted in the samples of a folder.

    Args:
        members: Type of each member in the form of ``datasets``, by its extension.
        licences: Samples by licence.
        legal_bases: Samples by legal basis.
        languages: Captions by language.
        unit: What ``languages`` counts.
    """

    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    licences: Counter[str] = field(default_factory=Counter)
    legal_bases: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    unit: str = "captions"


def write_card(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Write the README.md of a shard folder; one that somebody else wrote is left alone.

    Args:
        folder: The folder, its tars complete.
        entries: The lines of its manifest.
    """
    if has_other_card(folder) or not entries:
        return
    foreign = any(entry.records for entry in entries)
    counts = _count_ledger(folder / LEDGER) if foreign else _count_samples(folder, entries)
    here = all((folder / entry.shard).is_file() for entry in entries)
    write_text(folder / CARD, _front_matter(counts, here) + _text(entries, counts, here))


def has_other_card(folder: Path) -> bool:
    """Return whether a folder has a README.md that is not ours."""
    try:
        with (folder / CARD).open("rb") as file:
            return MARK.encode() not in file.read(1 << 20)
    except FileNotFoundError:
        return False


def _count_samples(folder: Path, entries: Iterable[ShardEntry]) -> CardCounts:
    """Count the samples of tars of ours; of a sample, only the headers and the json are read."""
    counts = CardCounts()
    for entry in entries:
        index = read_index(folder / index_name(entry.shard), entry, str(folder / entry.shard))
        with open(folder / entry.shard, "rb", buffering=0) as tar:
            for row in range(entry.samples):
                _count_sample(tar, index, row, counts)
    return counts


def _count_sample(tar: BinaryIO, index: ShardIndex, row: int, counts: CardCounts) -> None:
    position, end = int(index.offset[row]), int(index.offset[row] + index.size[row])
    while position + BLOCK <= end:
        name, size, _ = member_header(read_range(tar, position, BLOCK, "tar"))
        suffix = name.partition(".")[2]
        if suffix == "json":
            _count_record(read_range(tar, position + BLOCK, size, "tar"), counts)
        if suffix not in counts.members:
            counts.members[suffix] = _member_type(suffix, read_range(tar, position + BLOCK, size, "tar"))
        position += BLOCK + size + -size % BLOCK


def _count_record(content: bytes, counts: CardCounts) -> None:
    try:
        record = parse_object(content)
    except ValueError:  # of a stranger's sample that was copied
        record = {}
    counts.licences[str(record.get("licence") or NOT_STATED)] += 1
    counts.legal_bases[str(record.get("legal_basis") or NOT_STATED)] += 1
    captions = record.get("captions")
    for caption in captions if isinstance(captions, list) else []:
        if isinstance(caption, dict):
            counts.languages[str(caption.get("language") or NOT_STATED)] += 1


def _count_ledger(path: Path) -> CardCounts:
    """Count the kept rows of a ledger, for tars that others made; their fields are not declared."""
    counts = CardCounts(unit="samples")
    columns = {"licence": counts.licences, "legal_basis": counts.legal_bases, "language": counts.languages}
    try:
        with open_parquet(path) as file:
            for batch in file.batches(1 << 16, ["kept", *columns]):
                table = pa.Table.from_batches([batch]).filter(batch.column("kept"))
                for name, counter in columns.items():
                    for pair in table[name].value_counts().to_pylist():
                        counter[pair["values"] or NOT_STATED] += pair["counts"]
    except ERRORS:
        return CardCounts()  # not measured
    return counts


def _member_type(suffix: str, content: bytes) -> dict[str, Any]:
    """Return the type of a member in the form of ``datasets``."""
    if suffix in MEMBER_EXTENSIONS:
        return {"dtype": "image"}
    if suffix == "json":
        return {"struct": _record_type()}
    if suffix.endswith("npy"):
        try:
            array = parse_array(content)
        except ValueError:
            return {"dtype": "binary"}
        kind: Any = str(array.dtype)
        for _ in range(array.ndim - 1):
            kind = {"list": kind}
        return {"list": kind}
    return {"dtype": "string" if suffix in ("txt", "text") else "binary"}


def _record_type() -> list[dict[str, Any]]:
    """Return the type of the json: the fields that have the same type in every sample."""
    captions = [{"name": name, "dtype": kind} for name, kind in CAPTION.items()]
    return [
        *({"name": name, "dtype": "string"} for name in TEXTS),
        *({"name": name, "dtype": "int64"} for name in SIDES),
        {"name": "captions", "list": captions},
        {"name": "transforms", "list": "string"},
    ]


def _front_matter(counts: CardCounts, here: bool) -> str:
    content: dict[str, Any] = {}
    if languages := sorted(code for code in counts.languages if re.fullmatch("[a-z]{2,3}", code) and code != "und"):
        content["language"] = languages
    if here:
        content["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": "*.tar"}]}]
    if here and counts.members:
        own = [{"name": name, **kind} for name, kind in sorted(counts.members.items())]
        places = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
        content["dataset_info"] = {"config_name": "default", "features": [*own, *places]}
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n" if content else ""


def _text(entries: Sequence[ShardEntry], counts: CardCounts, here: bool) -> str:
    samples, size = sum(entry.samples for entry in entries), sum(entry.bytes for entry in entries)
    root = merkle_root(list(entries))
    parts = [
        f"{MARK}\n# Data set {root[:12]}",
        f"{samples:,} samples in {len(entries):,} WebDataset tars, {size:,} bytes.",
        f"Merkle root of the manifest: `{root}`.",
    ]
    if here:
        opening = 'import datasets\n\ndata = datasets.load_dataset("path/to/this/folder", split="train")'
        parts += [f"```python\n{opening}\n```"]
        if counts.members:
            parts += [
                "`streaming=True` needs datasets 5 or later: versions 3 and 4 fail where the json of two samples has "
                "different fields. Its `consent` and `metadata` have, so they are not declared here; webdataset reads "
                "them."
            ]
    else:
        parts += [f"The tars lie in other folders, which `{TARS}` names; `datasets` does not open them from here."]
    parts += [
        _table("Licence", "samples", counts.licences),
        _table("Legal basis", "samples", counts.legal_bases),
        _table("Language", counts.unit, counts.languages),
        f"The Merkle root names the data set and changes with any byte of it. Cite: {samples:,} samples, {root}.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, unit: str, counter: Counter[str]) -> str:
    if not counter:
        return f"{title}: not measured."
    rows = sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))
    lines = [f"| {title} | {unit} |", "|---|---:|"]
    lines += [f"| {plain(value)} | {count:,} |" for value, count in rows[:SHOWN]]
    if rest := rows[SHOWN:]:
        lines.append(f"| {len(rest):,} others | {sum(count for _, count in rest):,} |")
    return "\n".join(lines)


def plain(text: str) -> str:
    """Return a stranger's text as one line of Markdown without any markup."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", line).replace("://", ":&#47;/")
