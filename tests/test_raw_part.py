import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools import raw_part
from data_tools.image_fetch import FetchSetting
from data_tools.image_repair import ImageRule
from data_tools.raw_part import fetch_parts, repaired_rows
from leam_mm.errors import UserError

ROWS = [0, 2, 3, 5, 8, 9, 11]  # rows of the table that were worth fetching
PART = 3


def picture(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (row, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_part(raw: Path, part: int, rows: list[int], **changes: object) -> None:
    """One part as img2dataset leaves it: rows in order of arrival."""
    arrived = np.random.default_rng(part).permutation(rows)
    cells = [
        {
            "row": int(row),
            "status": "success",
            "error_message": None,
            "sha256": hashlib.sha256(picture(row)).hexdigest(),
            "jpg": picture(row),
        }
        | changes
        for row in arrived
    ]
    pq.write_table(pa.Table.from_pylist(cells), raw / f"{part:05d}.parquet")
    (raw / f"{part:05d}_stats.json").write_text(json.dumps({"end_time": 0.0}))


def parts_of(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + PART] for start in range(0, len(rows), PART)]


@pytest.fixture()
def setting(tmp_path: Path) -> FetchSetting:
    (tmp_path / "raw").mkdir()
    return FetchSetting(str(tmp_path / "links.parquet"), str(tmp_path / "raw"), "Agent", "", rows_per_part=PART)


def links() -> list[tuple[int, str]]:
    return [(row, f"http://a.example/{row}") for row in ROWS]


@pytest.mark.parametrize("processes", [0, 1])
def test_rows_come_in_the_order_of_the_table(
    processes: int, setting: FetchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_part, "IN_PROCESS", 0)
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(setting.output), part, rows)
    found = list(repaired_rows(Path(setting.output), ROWS, setting, ImageRule(), processes))
    assert [row for row, _ in found] == ROWS
    assert all(fetched.image and fetched.image.content == picture(row) for row, fetched in found)
    assert {fetched.fetched_at for _, fetched in found} == {"1970-01-01T00:00:00+00:00"}


def test_a_program_that_exits_well_with_nothing_done_is_told(
    setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def do_nothing(*arguments: object) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(raw_part, "_run_child", do_nothing)
    with pytest.raises(UserError, match=r"exit code 0\) did not bring back 3 parts .*img2dataset\.log"):
        fetch_parts(tmp_path, setting, links())
    assert len(calls) == 2


def test_only_parts_that_are_not_whole_are_fetched_again(
    setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, parts = Path(setting.output), parts_of(ROWS)
    write_part(raw, 0, parts[0])
    write_part(raw, 1, parts[1][:-1])  # a row was lost on the way
    write_part(raw, 2, parts[2])
    (raw / "00002.parquet").write_bytes(b"PAR1")  # killed while writing
    kept, waiting = (raw / "00000.parquet").read_bytes(), []

    def fetch(_work: Path, _setting: FetchSetting, _total: int, rows: int, _journal: Path) -> int:
        waiting.append(sorted(path.name for path in raw.iterdir()))
        write_part(raw, 1, parts[1])
        write_part(raw, 2, parts[2])
        return 0

    monkeypatch.setattr(raw_part, "_run_child", fetch)
    fetch_parts(tmp_path, setting, links())
    assert waiting == [["00000.parquet", "00000_stats.json"]] and (raw / "00000.parquet").read_bytes() == kept
    fetch_parts(tmp_path, setting, links())
    assert len(waiting) == 1  # now all are there
    assert pq.read_table(setting.links).to_pydict()["row"] == ROWS


def test_rows_of_another_table_are_refused(setting: FetchSetting) -> None:
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(setting.output), part, rows)
    with pytest.raises(UserError, match="does not hold the rows it should"):
        list(repaired_rows(Path(setting.output), [1, *ROWS[1:]], setting, ImageRule(), 0))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"status": "failed_to_download", "jpg": None, "error_message": "HTTP Error 404"}, "download"),
        (
            {"status": "failed_to_download", "jpg": None, "error_message": "<urlopen error refused: x>"},
            "private_address",
        ),
        ({"status": "failed_to_download", "jpg": None, "error_message": "too many bytes: 9"}, "bytes"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"jpg": b"<html>"}, "decode"),
    ],
)
def test_failures_keep_their_rule(changes: dict[str, object], rule: str, setting: FetchSetting) -> None:
    write_part(Path(setting.output), 0, ROWS[:1], **changes)
    (_, fetched), *_ = repaired_rows(Path(setting.output), ROWS[:1], setting, ImageRule(), 0)
    assert fetched.image is None and fetched.rule == rule and fetched.reason and "<urlopen" not in fetched.reason
