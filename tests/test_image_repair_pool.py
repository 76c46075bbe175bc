import io
import os
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys.images import encoded_image, soft_jpeg
from toys.published import FETCHED_AT, ROWS, ROWS_PER_PART, part_image, parts_of, write_part
from toys.recipes import ROOT

from data_tools.download import image_repair_pool as part_repair
from data_tools.download.image_repair_pool import Fetched, repaired_rows
from data_tools.download_shards import main as download
from data_tools.network.image_fetch import FetchSetting
from data_tools.samples.image_repair import ImageRule
from data_tools.work import time_limit
from leam_mm.errors import UserError

HOLE = """
    import os, signal
    from data_tools.download import image_repair_pool as part_repair
    repair_image = part_repair.repair_image
    def with_a_hole(raw, rule):
        if raw.startswith(b"CRASH"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return repair_image(raw, rule)
    part_repair.repair_image = with_a_hole
"""


def repaired(fetch_setting: FetchSetting, rows: list[int], processes: int = 0) -> list[tuple[int, Fetched]]:
    return list(repaired_rows(Path(fetch_setting.output), iter(rows), len(rows), ROWS_PER_PART, ImageRule(), processes))


@pytest.mark.parametrize("processes", [0, 1])
def test_rows_come_in_the_order_of_the_table(
    processes: int, fetch_setting: FetchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_repair, "FEW", 0)
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(fetch_setting.output), part, rows)
    found = repaired(fetch_setting, ROWS, processes)
    assert [row for row, _ in found] == ROWS
    assert all(fetched.image and fetched.image.content == part_image(row) for row, fetched in found)
    assert {fetched.fetched_at for _, fetched in found} == {FETCHED_AT}
    assert all(fetched.visit == {"seconds": 0.1} and fetched.response["final_url"] for _, fetched in found)


def test_rows_of_another_table_are_refused(fetch_setting: FetchSetting) -> None:
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(fetch_setting.output), part, rows)
    with pytest.raises(UserError, match="does not hold the expected rows"):
        repaired(fetch_setting, [1, *ROWS[1:]])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rule": "download", "content": None, "reason": "HTTP status 404"}, "download"),
        ({"rule": "private_address", "content": None, "reason": "refused: x"}, "private_address"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"content": b"<html>"}, "decode"),
    ],
)
def test_failures_keep_their_rule(changes: dict[str, object], rule: str, fetch_setting: FetchSetting) -> None:
    write_part(Path(fetch_setting.output), 0, ROWS[:1], **changes)
    ((_, fetched),) = repaired(fetch_setting, ROWS[:1])
    assert fetched.image is None and fetched.rule == rule and fetched.reason


@pytest.mark.slow
def test_an_image_that_crashes_its_process_is_left_out(
    fetch_setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder with a hole: the process dies, as by a broken pointer, on images that begin with a certain word."""
    (tmp_path / "hole").mkdir()
    (tmp_path / "hole" / "sitecustomize.py").write_text(textwrap.dedent(HOLE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "hole"), str(ROOT))))
    monkeypatch.setattr(part_repair, "FEW", 0)
    for part, rows in enumerate(parts_of(ROWS)):
        write_part(Path(fetch_setting.output), part, rows, **({"content": b"CRASH"} if part == 1 else {}))
    found = dict(repaired(fetch_setting, ROWS, 2))
    assert list(found) == ROWS and [row for row in ROWS if found[row].rule == "crash"] == parts_of(ROWS)[1]
    assert all((found[row].image is None) == bool(found[row].reason) for row in ROWS)


def test_a_poisoned_image_ends_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real download of a folder with an image that kills its process, and one that no encoder takes."""
    (tmp_path / "hole").mkdir()
    (tmp_path / "hole" / "sitecustomize.py").write_text(textwrap.dedent(HOLE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "hole"), str(ROOT))))
    source = tmp_path / "source"
    source.mkdir()
    images = {f"{seed}.png": soft_jpeg(seed, kind="PNG") for seed in range(3)}
    images |= {"crash.png": b"CRASH", "wide.png": encoded_image(Image.new("P", (20_000, 10)))}
    for name, content in images.items():
        (source / name).write_bytes(content)
        (source / name).with_suffix(".txt").write_text(f"the image {name}")
    words = ["--folder", source, "--output", tmp_path / "shards", "--format", "webp", "--min-success", "0.1"]
    download([str(word) for word in words])
    rows = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert [(row["rule"], row["kept"]) for row in rows] == [*[("kept", True)] * 3, ("crash", False), ("encode", False)]


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), SystemError("bad"), UserError("odd")])
def test_any_error_about_an_image_is_its_fate(
    error: Exception, fetch_setting: FetchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    write_part(Path(fetch_setting.output), 0, ROWS[:1])
    monkeypatch.setattr(part_repair, "rights_in_file", fail)
    ((_, fetched),) = repaired(fetch_setting, ROWS[:1])
    assert fetched.image is None and (fetched.rule, fetched.value) == ("error", type(error).__name__)


def test_an_image_that_decodes_too_slowly_is_given_up(
    fetch_setting: FetchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=1)
    write_part(Path(fetch_setting.output), 0, [0], content=buffer.getvalue())
    monkeypatch.setattr(time_limit, "SAMPLE_SECONDS", 0.005)
    ((_, fetched),) = repaired(fetch_setting, [0])
    assert fetched.image is None and "longer than 0.005 s" in fetched.reason
