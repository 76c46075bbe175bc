"""leam_mm.data.ledger: rows are read as written, an error leaves no file, uids are unique."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leam_mm.data.ledger import ROWS, LedgerWriter, link_uid, read_ledger
from leam_mm.errors import UserError


def test_rows_are_read_in_order_with_their_evidence(tmp_path):
    path = tmp_path / "ledger.parquet"
    with LedgerWriter(path, "screen") as ledger:
        ledger.write(
            {"uid": str(n), "rule": "url", "kept": n % 2 == 0, "evidence": {"b": n, "a": "é"}} for n in range(ROWS + 3)
        )
    rows = [row for batch in read_ledger(path) for row in batch.to_pylist()]
    assert [row["uid"] for row in rows] == [str(n) for n in range(ROWS + 3)]
    assert {row["stage"] for row in rows} == {"screen"}
    assert json.loads(rows[7]["evidence"]) == {"a": "é", "b": 7} and rows[7]["evidence"].startswith('{"a"')
    assert pq.ParquetFile(path).num_row_groups == 2


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), LedgerWriter(tmp_path / "ledger.parquet", "vet") as ledger:
        ledger.write([{"uid": "1"}])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path):
    pq.write_table(pa.table({"uid": ["1"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no column 'key'"):
        list(read_ledger(tmp_path / "other.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_ledger(tmp_path / "broken.parquet"))


def test_a_uid_depends_on_address_page_and_caption():
    names = {link_uid(*link) for link in (("a", "b", "c"), ("ab", "", "c"), ("a", "b", "d"), ("a", None, "bc"))}
    assert len(names) == 4 and all(len(name) == 32 for name in names)
    assert link_uid("a", None, "c") == link_uid("a", "", "c")
