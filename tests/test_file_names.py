"""Names of files and links that break conventions: kept where possible, otherwise recorded for their sample alone."""

import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from data_tools.download.image_download import DownloadSettings, download_images
from data_tools.gather_folder import main as gather
from data_tools.links.link_rows import LinkRows
from data_tools.network.link_address import LinkRefused, check_link
from leam_mm.data.ledger import read_ledger
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

NAMES = [b"plain", b"latin-\xe9", b"\xff\xfe", b"a\xf0\x9f", "ü €".encode(), b"%41%00", b"x" * 240]


def images(folder: Path, names: list[bytes]) -> None:
    """Write images with captions under names of any bytes."""
    folder.mkdir()
    for number, name in enumerate(names):
        path = folder / os.fsdecode(name)
        Image.new("RGB", (64, 64), (number * 20, 40, 90)).save(f"{os.fspath(path)}.png")
        Path(f"{os.fspath(path)}.txt").write_text("a tree", "utf-8")


def test_a_folder_with_names_of_any_bytes(tmp_path: Path) -> None:
    images(tmp_path / "images", NAMES)
    download_images(DownloadSettings(tmp_path / "shards", folder=tmp_path / "images", min_side=8, processes=1))
    found = [row for batch in read_ledger(tmp_path / "shards" / "ledger.parquet") for row in batch.to_pylist()]
    assert [row["kept"] for row in found] == [True] * len(NAMES), found
    assert all(row["url"].isascii() for row in found) and sum(1 for _ in read_samples(tmp_path / "shards")) == len(
        NAMES
    )


def test_gathering_names_of_any_bytes(tmp_path: Path) -> None:
    images(tmp_path / "images", NAMES[:5])
    (tmp_path / "contract.txt").write_text("agreed")
    options = "--legal-basis licensed --licence CC-BY-4.0 --rights-holder A --purpose tests"
    options += f" --evidence {tmp_path}/contract.txt"
    further = "-- --min-side 8 --processes 1"
    gather(f"--source {tmp_path}/images --output {tmp_path}/shards {options} {further}".split())
    assert sum(1 for _ in read_samples(tmp_path / "shards")) == 5


@pytest.mark.parametrize("name", ["a%00b.png", "%FF.png", "x" * 300 + ".png", "/".join(["y" * 200] * 40), "a%0Ab.png"])
def test_links_to_files_that_cannot_exist(name: str, tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text(f"url,caption\nfile:{name},a tree\nfile:b.png,a tree\n")
    rows = list(LinkRows(tmp_path / "links.csv", None, True, []))
    assert rows[1].fetch and rows[0].decision["url"].isascii()
    if "%00" in name:
        assert rows[0].decision["rule"] == "path" and "\n" not in rows[0].decision["reason"]
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    settings = DownloadSettings(tmp_path / "shards", table=tmp_path / "links.csv", allow_file=True, min_side=8)
    settings.min_success, settings.processes = 0.5, 1
    download_images(settings)
    found = [row for batch in read_ledger(tmp_path / "shards" / "ledger.parquet") for row in batch.to_pylist()]
    assert [row["kept"] for row in found] == [False, True] and found[0]["rule"] in ("path", "download", "url")
    assert "\n" not in found[0]["reason"]


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(LinkRefused, match="not a usable path"):
        check_link("file:a.png", tmp_path, True, [])


OPTIONS = "--legal-basis synthetic --licence CC0-1.0 --rights-holder A --purpose tests --generator a"
FURTHER = "-- --min-side 8 --processes 1 --min-success 0"


def gathered(source: str | Path, output: Path) -> dict[str, dict[str, Any]]:
    """Gather a folder as the program does, and return its ledger by address."""
    gather(f"--source {source} --output {output} --max-bytes 5000 {OPTIONS} {FURTHER}".split())
    return {row["url"]: row for batch in read_ledger(output / "ledger.parquet") for row in batch.to_pylist()}


def another_disk() -> SimpleNamespace:
    """Return a module os whose hard links fail."""
    return SimpleNamespace(link=lambda *_: os.link("absent", "absent"), path=os.path)


def test_an_image_that_cannot_be_gathered_is_recorded_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"plain", b"line\nfeed", b"bell\x07", b"back\\slash", b"large", b"long-caption", b"latin-\xe9", b"z" * 248]
    images(tmp_path / "images", names)
    Path(tmp_path / "images" / "large.png").write_bytes(b"x" * 6000)
    Path(tmp_path / "images" / "long-caption.txt").write_text("x" * 70_000)
    # On another disk, files are copied under a temporary name, which is longer.
    monkeypatch.setattr("data_tools.download.folder_source.os", another_disk())
    found = gathered(tmp_path / "images", tmp_path / "shards")
    assert len(found) == len(names)
    assert [url for url, row in found.items() if row["kept"]] == ["file:latin-%E9.png", "file:plain.png"]
    reasons = {url: row["reason"] for url, row in found.items() if row["rule"] == "file"}
    for url, reason in {
        "file:line%0Afeed.png": "has control characters",
        "file:bell%07.png": "has control characters",
        "file:back%5Cslash.png": "leads out of the folder",
        "file:large.png": "6000 bytes, more than 5000",
        "file:long-caption.png": "70000 bytes, more than 65536",
        f"file:{'z' * 248}.png": "too long",
    }.items():
        assert reason in reasons.pop(url)
    assert not reasons and all("\n" not in row["reason"] for row in found.values())
    assert sum(1 for _ in read_samples(tmp_path / "shards")) == 2


def test_names_of_an_archive_that_lead_out_of_it_are_recorded(tmp_path: Path) -> None:
    images(tmp_path / "images", [b"plain"])
    (tmp_path / "inner").mkdir()
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"mine")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for path in sorted((tmp_path / "images").iterdir()):
            archive.write(path, path.name)
            archive.write(path, f"inner/../../../victim{path.suffix}")
            archive.write(path, f"{'y' * 300}{path.suffix}")
    found = gathered(f"zip://::{tmp_path}/archive.zip", tmp_path / "shards")
    assert [row["kept"] for row in found.values()].count(True) == 1 and found["file:plain.png"]["kept"]
    assert "too long" in found[f"file:{'y' * 300}.png"]["reason"] and victim.read_bytes() == b"mine"
    assert any("leads out" in row["reason"] for row in found.values())


def test_a_table_of_captions_names_an_image_that_is_not_gathered(tmp_path: Path) -> None:
    images(tmp_path / "images", [b"plain", b"bell\x07"])
    (tmp_path / "images" / "captions.csv").write_text("url,caption\nbell\x07.png,a bell\nplain.png,a tree\n")
    found = gathered(tmp_path / "images", tmp_path / "shards")
    assert [row["kept"] for row in found.values()] == [False, True]
    assert "control characters" in found["file:bell%07.png"]["reason"]


def test_a_source_of_which_nothing_can_be_gathered_is_one_line(tmp_path: Path) -> None:
    images(tmp_path / "images", [b"bell\x07"])
    with pytest.raises(UserError, match=r"no image can be gathered: .*control characters"):
        gathered(tmp_path / "images", tmp_path / "shards")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
