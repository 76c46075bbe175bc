from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.links import row_filters as row_filters
from data_tools.links.link_rules import LinkRuleSettings
from data_tools.links.row_filters import chunk_cost, filter_rows, read_chunk
from leam_mm.errors import UserError

CAPTION = "Eine rote Katze schläft auf dem alten Sofa im Garten"


def write_links(path: Path, rows: int) -> Path:
    urls = [f"https://h{number % 7}.example/{number}.jpg" for number in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": [CAPTION] * rows}), path)
    return path


def test_chunks_are_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_filters, "CHUNK", 40)
    tables = [write_links(tmp_path / "a.parquet", 100), write_links(tmp_path / "b.parquet", 10)]
    done: list[int] = []
    assert filter_rows(tables, tmp_path / "rows", LinkRuleSettings(), 1, done.append) == (4, 110)
    assert done == [40, 40, 20, 10] and [read_chunk(tmp_path / "rows", number).num_rows for number in range(4)] == done
    cost = chunk_cost(tmp_path / "rows", 4)
    assert cost["language"]["rows"] == 110 and cost["language"]["cpu_seconds"] > 0
    paths = sorted((tmp_path / "rows").iterdir())
    before = {path: path.read_bytes() for path in paths}
    paths[1].unlink()
    filter_rows(tables, tmp_path / "rows", LinkRuleSettings(), 1, done.append)
    kept = {path: path.read_bytes() for path in sorted((tmp_path / "rows").iterdir())}
    assert list(kept) == paths and all(kept[path] == before[path] for path in paths if path != paths[1])
    paths[2].write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        read_chunk(tmp_path / "rows", 2)


@pytest.mark.slow
def test_processes_judge_as_one_does(tmp_path: Path) -> None:
    tables = [write_links(tmp_path / "a.parquet", 25_000)]
    for processes in (1, 2):
        assert filter_rows(tables, tmp_path / f"rows{processes}", LinkRuleSettings(), processes, lambda _: None) == (
            3,
            25_000,
        )
    for number in range(3):
        assert read_chunk(tmp_path / "rows1", number).equals(read_chunk(tmp_path / "rows2", number))
