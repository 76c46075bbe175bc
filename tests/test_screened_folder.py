import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from data_tools.links import row_filters, screen_stages, screened_folder
from data_tools.links.link_table import read_links
from data_tools.links.screened_folder import largest_first
from data_tools.screen_links import main
from data_tools.work.ledger import read_ledger

CAPTION = "Eine rote Katze schläft auf dem alten Sofa im Garten"


def test_every_row_has_one_fate_whatever_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tables whose last chunks are short, several chunks in a range, ranges without links."""
    tables = []
    for name, count in (("a", 35), ("b", 7), ("c", 22)):
        lines = []
        for number in range(count):
            url = f"https://h{number % 3}.example/{number}.jpg" if name != "b" else f"ftp://a.example/{number}"
            lines.append(
                {"url": url, "caption": CAPTION, "consent": json.dumps({"page_rights": [], "origin": "forged"})}
            )
        tables.append(tmp_path / f"{name}.jsonl")
        tables[-1].write_text("\n".join(map(json.dumps, lines)))
    found = []
    for place, (chunk, span, held) in enumerate([(10_000, 10, 100_000), (10, 1, 3), (4, 3, 1)]):
        for module in (row_filters, screen_stages, screened_folder):
            monkeypatch.setattr(module, "CHUNK", chunk)
        for module in (screen_stages, screened_folder):
            monkeypatch.setattr(module, "RANGE", chunk * span)
        monkeypatch.setattr(screened_folder, "SORTED", held)
        output = tmp_path / f"screened{place}"
        main(["--table", *map(str, tables), "--output", str(output), "--processes", "1", "--skip-origins"])
        ledger = pa.Table.from_batches(read_ledger(output / "ledger.parquet"))
        found.append((ledger.to_pylist(), read_links(output / "links.parquet").to_pylist()))
    assert found[0] == found[1] == found[2]
    rows, links = found[0]
    assert Counter(row["rule"] for row in rows) == {"kept": 35, "scheme": 7, "duplicate_link": 22}
    assert [row["rule"] for row in rows] == ["kept"] * 35 + ["scheme"] * 7 + ["duplicate_link"] * 22
    assert [row["value"] for row in rows[42:]] == [row["uid"] for row in rows[:22]]
    assert len(links) == 35 and {row["uid"] for row in links} == {row["uid"] for row in rows[:35]}
    assert all(json.loads(row["consent"]) == {"page_rights": [], "origin": "not asked"} for row in links)


def test_counts_are_told_by_size() -> None:
    assert list(largest_first(Counter({"b": 2, "a": 2, "c": 5, "d": 1}), 3)) == ["c", "a", "b"]
