import io
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.corpora import debian_packages
from data_tools.corpora.debian_packages import fetch_debian_package, read_debian_package
from data_tools.corpora.picture_sources import STAMP_FOLDER, WORD_FOLDER, parse_description, read_stamps
from data_tools.gather_pictures import main
from data_tools.vetting.held_out_pictures import Candidate, split_pictures
from leam_mm.errors import UserError

LISTS = f"{WORD_FOLDER}i18n/custom/"


def picture(seed: int, kind: str = "PNG", side: int = 48) -> bytes:
    """Blocks of random colours: no two seeds look alike."""
    draw = random.Random(seed)
    image = Image.new("RGB", (6, 6))
    image.putdata([tuple(draw.randrange(256) for _ in range(3)) for _ in range(36)])
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    image.resize((side, side), Image.Resampling.BILINEAR).save(buffer, kind, **options)
    return buffer.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_deb(path: Path, name: str, files: dict[str, bytes]) -> Path:
    """A package as deb(5) describes it."""
    control = tar({"control": f"Package: {name}\nVersion: 1.2-3\n".encode()})
    content = b"!<arch>\n"
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": control, "data.tar.xz": tar(files)}
    for member, part in parts.items():
        content += f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(part):<10}`\n".encode() + part
        content += b"\n" * (len(part) % 2)
    path.write_bytes(content)
    return path


def stamp(name: str, english: str, german: str, seed: int) -> dict[str, bytes]:
    description = f"{english}.\nde.utf8={german}.\nfr.utf8={english}.\npt_BR.utf8=x\nga.utf8=\nnot a line\n"
    return {f"{STAMP_FOLDER}{name}.png": picture(seed), f"{STAMP_FOLDER}{name}.txt": description.encode()}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    stamps: dict[str, bytes] = {"usr/share/doc/copyright": b"text"}
    for number in range(20):
        stamps |= stamp(f"animals/birds/bird{number}", f"A bird {number}", f"Vogel {number}", number)
    stamps |= stamp("symbols/alphabets/a", "The letter A", "Der Buchstabe A", 50)
    stamps[f"{STAMP_FOLDER}animals/silent.txt"] = b"A stamp without an image."
    stamps[f"{STAMP_FOLDER}animals/fake.png"] = b"no image"
    stamps[f"{STAMP_FOLDER}animals/fake.txt"] = b"A fake."
    write_deb(folder / "tuxpaint-stamps-default_1_all.deb", "tuxpaint-stamps-default", stamps)
    words = {
        f"{LISTS}a4a_words.py": b'd = dict()\nd["a4a_food"] = ["red apple", "pear", "egg"]\nraise SystemExit\n',
        f"{LISTS}a4a_py/de.py": b'd = dict()\nd["a4a_food"] = ["roter Apfel", "Birne", "egg"]\n',
        f"{LISTS}a4a_py/fr.py": b'd = dict()\nd["a4a_food"] = ["pomme rouge"]\n',
        f"{WORD_FOLDER}res/images/art4apps/food/red_apple.jpg": picture(100, "JPEG"),
        f"{WORD_FOLDER}res/images/art4apps/food/egg.jpg": picture(101, "JPEG"),
        f"{WORD_FOLDER}res/images/art4apps/food/pear.jpg": picture(3, "JPEG"),  # looks like a stamp
    }
    write_deb(folder / "pysiogame_1_all.deb", "pysiogame", words)
    return folder


def rows_of(output: Path, split: str) -> list[dict]:
    rows = pq.read_table(output / f"{split}.parquet").to_pylist()
    for row in rows:
        row["texts"] = {entry["language"]: entry["text"] for entry in json.loads(row["captions"])}
    return rows


def test_the_program_writes_tables_with_licences_and_descriptions(packages: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    main(["--output", str(output), "--packages", str(packages), "--held-out", "12", "--workers", "1", "--size", "32"])
    train, validation, test = (rows_of(output, split) for split in ("train", "validation", "test"))
    assert len(test) == 12 and len(train) == 8
    assert {row["texts"]["en"] for row in train + test} == {f"A bird {number}" for number in range(20)}
    assert all(set(row["texts"]) == {"en", "de"} for row in train + test)  # French was never translated
    assert {row["licence"] for row in train + test} == {"GPL-2.0-or-later"}
    assert all("Bill Kendrick" in row["attribution"] for row in train + test)
    assert {row["licence"] for row in validation} == {"LicenseRef-CC-BY-SA"}
    words = {row["texts"]["en"]: row["texts"] for row in validation}
    assert words["red apple"] == {"en": "red apple", "de": "roter Apfel"}
    assert words["egg"] == {"en": "egg"}
    seen = any(row["texts"]["en"] == "A bird 3" for row in test)
    assert ("pear" in words) != seen  # the drawing of a pear looks like bird 3
    for row in test:
        image = Image.open(output / "images" / row["url"].split("/images/")[1])
        assert image.size == (32, 32) and image.mode == "RGB"
    summary = json.loads((output / "summary.json").read_text())
    assert [entry["version"] for entry in summary["packages"]] == ["1.2-3", "1.2-3"]
    assert summary["not_drawn"] == ["stamps/animals--fake"]
    assert not list(output.glob("*.tmp-*"))


def test_too_few_images_to_hold_out_are_refused(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--held-out 20: the packages leave 20 images to test and 0 to train on"):
        main(["--output", str(tmp_path / "out"), "--packages", str(packages), "--held-out", "20", "--workers", "1"])


def test_emoji_that_look_like_held_out_images_are_left_out(tmp_path: Path) -> None:
    images = []
    for number, role in enumerate(["split"] * 10 + ["train"] * 10 + ["validation"] * 2):
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture(number % 10))  # every image to train on, and of validation, is a copy of a stamp
        images.append(Candidate(path, f"A thing {number}", role))
    splits, left_out = split_pictures(images, held_out=5, seed=1)
    assert len(splits["test"]) == 5
    copies = {number + 10 for number in splits["test"]}
    assert not copies & set(splits["train"])
    assert not {number % 10 for number in splits["train"]} & {number % 10 for number in splits["validation"]}
    assert left_out == len(images) - sum(map(len, splits.values()))
    assert split_pictures(images, held_out=5, seed=1) == (splits, left_out)


def test_stamps_with_one_description_stay_together(tmp_path: Path) -> None:
    images = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture(number))
        images.append(Candidate(path, f"{'A' if number % 2 else 'the'} frog {number // 3}", "split"))
    splits, _ = split_pictures(images, held_out=5, seed=0)
    assert len(splits["test"]) == 6
    assert not {number // 3 for number in splits["test"]} & {number // 3 for number in splits["train"]}


def test_descriptions() -> None:
    content = "Żaba..\r\nde.utf8= Ein  Frosch. \nen.utf8=no\nzz.utf8=x\nsr@latin.utf8=x\nfi.utf8=żABA.\nes.utf8=\xff"
    assert parse_description(content.encode()) == {"en": "Żaba", "de": "Ein Frosch", "es": "ÿ"}
    assert parse_description(b"") == {"en": ""} and parse_description(b"\xff\xfe")["en"]
    assert read_stamps({f"{STAMP_FOLDER}a.txt": b"", f"{STAMP_FOLDER}a.png": b"x"}) == []


def test_an_unpacked_folder_and_damaged_packages(packages: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    (unpacked / "usr").mkdir(parents=True)
    (unpacked / "usr/a.txt").write_text("text")
    (unpacked / "usr/b.txt").symlink_to("/etc/hostname")
    content = read_debian_package("p", unpacked, r"usr/.*\.txt")
    assert content.files == {"usr/a.txt": b"text"} and content.evidence["version"] is None
    deb = packages / "pysiogame_1_all.deb"
    whole = deb.read_bytes()
    for damaged in (b"", b"no package", whole[:200], whole[:-200], whole.replace(b"data.tar.xz", b"data.tar.zz")):
        deb.write_bytes(damaged)
        with pytest.raises(UserError, match="not a readable Debian package"):
            read_debian_package("pysiogame", deb, ".*")


def test_a_missing_client_and_a_failing_one_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_packages.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no apt-get on PATH"):
        fetch_debian_package("pysiogame", tmp_path / "cache")
    monkeypatch.setattr(debian_packages.shutil, "which", lambda name: "/usr/bin/apt-get")

    def fail(command: list[str], **named: object) -> subprocess.CompletedProcess[str]:
        assert command == ["/usr/bin/apt-get", "download", "pysiogame"]
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package pysiogame\n")

    monkeypatch.setattr(debian_packages.subprocess, "run", fail)
    with pytest.raises(UserError, match=r"Unable to locate package pysiogame\); run apt-get update"):
        fetch_debian_package("pysiogame", tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_a_package_in_the_cache_is_not_fetched_again(packages: Path, tmp_path: Path) -> None:
    shutil.copy(packages / "pysiogame_1_all.deb", tmp_path)
    assert fetch_debian_package("pysiogame", tmp_path).name == "pysiogame_1_all.deb"
