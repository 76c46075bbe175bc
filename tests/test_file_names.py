"""Names of files and links that break conventions: kept where possible, otherwise recorded for their sample alone."""

import os
from pathlib import Path

import pytest
from PIL import Image

from data_tools.download.image_download import DownloadSettings, download_images
from data_tools.gather_folder import main as gather
from data_tools.links.link_rows import LinkRows
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.work.ledger import read_ledger
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
    assert [row["kept"] for row in found] == [False, True] and found[0]["rule"] in ("path", "download")
    assert "\n" not in found[0]["reason"]


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(LinkRefused, match="not a usable path"):
        check_link("file:a.png", tmp_path, True, [])


def test_a_name_that_is_too_long_to_be_staged_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another disk, files are copied under a temporary name, which is longer."""
    images(tmp_path / "images", [b"z" * 248])
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    with pytest.raises(UserError, match=r"zzz.*cannot be copied .*name too long.*shorter name"):
        options = "--legal-basis synthetic --licence CC0-1.0 --rights-holder A --purpose tests --generator a"
        gather(f"--source {tmp_path}/images --output {tmp_path}/shards {options}".split())
