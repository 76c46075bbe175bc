import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools import raw_part
from data_tools.download_worker import FETCHED, part_file
from data_tools.image_fetch import FetchSetting
from data_tools.image_repair import ImageRule
from data_tools.raw_part import Fetched, fetch_parts, repaired_rows
from leam_mm.errors import UserError

ROWS = [0, 2, 3, 5, 8, 9, 11]  # rows of the table that were worth fetching
PART = 3
MOMENT = "2026-11-01T12:00:00+00:00"


def picture(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (row, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_part(raw: Path, part: int, rows: list[int], **changes: object) -> None:
    """One part as a worker leaves it: rows in order of arrival."""
    arrived = np.random.default_rng(part).permutation(rows)
    cells = [
        {
            "row": int(row),
            "rule": "",
            "value": "",
            "reason": "",
            "fetched_at": MOMENT,
            "response": '{"final_url": "http://a.example/"}',
            "visit": '{"seconds": 0.1}',
            "sha256": hashlib.sha256(picture(row)).hexdigest(),
            "content": picture(row),
        }
        | changes
        for row in arrived
    ]
    pq.write_table(pa.Table.from_pylist(cells, FETCHED), part_file(raw, part))


def parts_of(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + PART] for start in range(0, len(rows), PART)]


@pytest.fixture()
def setting(tmp_path: Path) -> FetchSetting:
    (tmp_path / "raw").mkdir()
    return FetchSetting(str(tmp_path / "links"), str(tmp_path / "raw"), "Agent", "", rows_per_part=PART)


def links() -> Iterator[tuple[int, str, str | None]]:
    return iter([(row, f"http://a.example/{row}", None) for row in ROWS])


def repaired(setting: FetchSetting, rows: list[int], processes: int = 0) -> list[tuple[int, Fetched]]:
    return list(repaired_rows(Path(setting.output), iter(rows), len(rows), PART, ImageRule(), processes))


@pytest.mark.parametrize("processes", [0, 1])
def test_rows_come_in_the_order_of_the_table(
    processes: int, setting: FetchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_part, "IN_PROCESS", 0)
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(setting.output), part, rows)
    found = repaired(setting, ROWS, processes)
    assert [row for row, _ in found] == ROWS
    assert all(fetched.image and fetched.image.content == picture(row) for row, fetched in found)
    assert {fetched.fetched_at for _, fetched in found} == {MOMENT}
    assert all(fetched.visit == {"seconds": 0.1} and fetched.response["final_url"] for _, fetched in found)


def test_a_program_that_exits_well_with_nothing_done_is_told(
    setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def do_nothing(*arguments: object) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(raw_part, "_run_child", do_nothing)
    with pytest.raises(UserError, match=r"exit code 0\) did not bring back 3 parts .*img2dataset\.0\.log"):
        fetch_parts(tmp_path, setting, links, len(ROWS))
    assert len(calls) == 3


def test_only_parts_that_are_not_whole_are_fetched_again(
    setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, parts = Path(setting.output), parts_of(ROWS)
    write_part(raw, 0, parts[0])
    write_part(raw, 1, parts[1][:-1])  # a row was lost on the way
    write_part(raw, 2, parts[2])
    (raw / "00002.parquet").write_bytes(b"PAR1")  # a disk that was full
    kept, waiting = (raw / "00000.parquet").read_bytes(), []

    def fetch(_setting: FetchSetting, _total: int, rows: int, _journal: Path) -> int:
        waiting.append(sorted(path.name for path in raw.iterdir()))
        asked = [pq.read_table(path).to_pylist() for path in sorted(Path(setting.links).iterdir())]
        assert [[row["row"] for row in part] for part in asked] == parts[1:] and rows == 4
        assert [part[0]["part"] for part in asked] == [1, 2]
        write_part(raw, 1, parts[1])
        write_part(raw, 2, parts[2])
        return 0

    monkeypatch.setattr(raw_part, "_run_child", fetch)
    fetch_parts(tmp_path, setting, links, len(ROWS))
    assert waiting == [["00000.parquet"]] and (raw / "00000.parquet").read_bytes() == kept
    fetch_parts(tmp_path, setting, links, len(ROWS))
    assert len(waiting) == 1  # now all are there


def test_rows_of_another_table_are_refused(setting: FetchSetting) -> None:
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(setting.output), part, rows)
    with pytest.raises(UserError, match="does not hold the rows it should"):
        repaired(setting, [1, *ROWS[1:]])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rule": "download", "content": None, "reason": "HTTP status 404"}, "download"),
        ({"rule": "private_address", "content": None, "reason": "refused: x"}, "private_address"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"content": b"<html>"}, "decode"),
    ],
)
def test_failures_keep_their_rule(changes: dict[str, object], rule: str, setting: FetchSetting) -> None:
    write_part(Path(setting.output), 0, ROWS[:1], **changes)
    ((_, fetched),) = repaired(setting, ROWS[:1])
    assert fetched.image is None and fetched.rule == rule and fetched.reason


def test_an_image_that_keeps_its_decoder_busy_is_given_up(
    setting: FetchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=1)
    write_part(Path(setting.output), 0, [0], content=buffer.getvalue())
    monkeypatch.setattr(raw_part, "DECODE_SECONDS", 0.01)
    ((_, fetched),) = repaired(setting, [0])
    assert fetched.image is None and "longer than 0.01 s" in fetched.reason
