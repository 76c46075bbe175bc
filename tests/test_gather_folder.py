"""data_tools/gather_folder.py: images come with their agreement; missing statements are refused."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest
from toys.images import encoded_image, soft_image
from toys.recipes import ROOT

from data_tools.download.agreement import agreed_links
from data_tools.download.folder_source import list_files, open_source, stage_files
from data_tools.gather_folder import AGREEMENT, main
from data_tools.links.image_folder import read_image_folder
from data_tools.samples.shard_check import check_folder
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

TERMS = ["--licence", "CC-BY-4.0", "--rights-holder", "Museum of Lakes", "--purpose", "training of open models"]


def archive(folder: Path, count: int = 3) -> Path:
    (folder / "hall").mkdir(parents=True)
    for number in range(count):
        name = folder / ("hall" if number % 2 else ".") / f"lake ü {number}"
        name.with_suffix(".png").write_bytes(encoded_image(soft_image(number)))
        name.with_suffix(".txt").write_text(f"See Nummer {number}\n")
    (folder / "notes.pdf").write_bytes(b"not gathered")
    return folder


def contract(tmp_path: Path) -> Path:
    (tmp_path / "contract.pdf").write_bytes(b"signed on paper")
    return tmp_path / "contract.pdf"


def gather(source: object, output: Path, *further: object) -> None:
    main(["--source", str(source), "--output", str(output), *TERMS, *map(str, further)])


def test_samples_carry_the_agreement(tmp_path: Path) -> None:
    source, output = archive(tmp_path / "archive"), tmp_path / "shards"
    options = ["--legal-basis", "licensed", "--evidence", contract(tmp_path), "--until", "2030-01-31"]
    options += ["--language", "de"]
    gather(source, output, *options, "--", "--samples-per-shard", "2", "--processes", "1")
    assert check_folder(output)[1].faults == [] and len(list(output.glob("*.tar"))) == 2
    records = [json.loads(members["json"]) for _, members in read_samples(output)]
    assert len(records) == 3 and len({record["uid"] for record in records}) == 3
    digest = hashlib.sha256(b"signed on paper").hexdigest()
    for record in records:
        agreement = record["consent"]["agreement"]
        assert agreement["documents"] == [{"name": "contract.pdf", "bytes": 15, "sha256": digest}]
        assert agreement["purpose"] == "training of open models" and agreement["until"] == "2030-01-31"
        assert (record["legal_basis"], record["licence"], record["attribution"]) == (
            "licensed", "CC-BY-4.0", "Museum of Lakes")  # fmt: skip
        assert record["url"].startswith("file:") and str(tmp_path) not in json.dumps(record)
        assert record["captions"][0]["language"] == "de" and record["captions"][0]["source"] == "provided"
    assert json.loads((output / AGREEMENT).read_text())["rights_holder"] == "Museum of Lakes"
    assert not (tmp_path / "shards.source").exists() and len(list(source.rglob("*.png"))) == 3
    with pytest.raises(UserError, match="exists already"):
        gather(source, output, *options)


@pytest.mark.parametrize("kind", ["memory", "zip"])
def test_all_file_systems_give_the_same_table(kind: str, tmp_path: Path) -> None:
    source = archive(tmp_path / "archive")
    if kind == "memory":
        system = fsspec.filesystem("memory")
        for path in source.rglob("*"):
            if path.is_file():
                system.pipe(f"/museum-{os.getpid()}/{path.relative_to(source)}", path.read_bytes())
        address = f"memory://museum-{os.getpid()}"
    else:
        with zipfile.ZipFile(tmp_path / "archive.zip", "w") as packed:
            for path in source.rglob("*"):
                packed.write(path, path.relative_to(source))
        address = f"zip://::{tmp_path / 'archive.zip'}"
    tables = []
    for number, place in enumerate((str(source), address)):
        system, root, local = open_source(place)
        assert local is (number == 0)
        listed = list_files(system, root, local, 10**6)
        assert len(listed) == 6
        stage_files(system, local, listed, tmp_path / str(number), 10**6)
        agreement = {"legal_basis": "synthetic", "licence": "x", "rights_holder": "y"}
        tables.append(agreed_links(read_image_folder(tmp_path / str(number)), agreement, "en"))
    assert tables[0].equals(tables[1])


def test_a_table_overrides_only_the_options_it_has(tmp_path: Path) -> None:
    source = archive(tmp_path / "archive", 2)
    (source / "captions.csv").write_text(
        "url,caption,licence,attribution,language,legal_basis\nlake ü 0.png,a lake,CC0-1.0,,en,public_domain\n"
        "hall/lake ü 1.png,un lac,,A. Painter,fr,\n"
    )
    agreement = {"legal_basis": "synthetic", "licence": "CC-BY-4.0", "rights_holder": "Museum"}
    rows = agreed_links(read_image_folder(source), agreement, "und").to_pylist()
    assert [(row["licence"], row["attribution"], row["language"], row["legal_basis"]) for row in rows] == [
        ("CC0-1.0", "Museum", "en", "public_domain"), ("CC-BY-4.0", "A. Painter", "fr", "synthetic")]  # fmt: skip
    assert json.loads(rows[1]["consent"])["agreement"]["rights_holder"] == "A. Painter"
    (source / "captions.csv").write_text("url,caption,legal_basis\nlake ü 0.png,a lake,licensed\n")
    with pytest.raises(UserError, match="for which there is no --evidence"):
        agreed_links(read_image_folder(source), agreement, "und")
    (source / "captions.csv").write_text("url,caption\nhttps://elsewhere.example/x.png,a lake\n")
    with pytest.raises(UserError, match="relative to its folder"):
        agreed_links(read_image_folder(source), agreement, "und")


def test_missing_statements_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    source = archive(tmp_path / "archive")
    for options, word in (
        (["--legal-basis", "licensed"], "--evidence is missing"),
        (["--legal-basis", "consent", "--evidence", tmp_path / "absent.pdf"], "cannot be read"),
        (["--legal-basis", "synthetic"], "--generator is missing"),
        (["--legal-basis", "art4_general"], "strangers' pages"),
        (["--legal-basis", "mine"], "write one of"),
        (["--legal-basis", "public_domain", "--until", "soon"], "YYYY-MM-DD"),
        (["--legal-basis", "public_domain", "--purpose", " "], "--purpose is empty"),
        (["--legal-basis", "public_domain", "--max-bytes", "10"], "more than 10"),
    ):
        with pytest.raises(UserError, match=word):
            gather(source, tmp_path / "shards", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive"]


def test_hostile_sources_are_refused(tmp_path: Path) -> None:
    options = ["--legal-basis", "public_domain"]
    for address, word in (
        ("https://museum.example/archive", "which checks reservations"),
        ("zip://::http://museum.example/a.zip", "which checks reservations"),
        (str(tmp_path / "absent"), "cannot be opened"),
        ("nosuch://x", "cannot be opened"),
    ):
        with pytest.raises(UserError, match=word):
            gather(address, tmp_path / "shards", *options)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as packed:
        packed.writestr("../../escape.png", encoded_image(soft_image(0)))
        packed.writestr("../../escape.txt", "out")
    with pytest.raises(UserError, match=r"leads out|holds no image"):
        gather(f"zip://::{tmp_path / 'evil.zip'}", tmp_path / "shards", *options)
    source = archive(tmp_path / "archive")
    (tmp_path / "secret.png").write_bytes(encoded_image(soft_image(1)))
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leads out"):
        gather(source, tmp_path / "shards", *options)
    (source / "link.png").unlink()
    with pytest.raises(UserError, match="lies inside"):
        gather(source, source / "shards", *options)
    assert not (tmp_path / "shards").exists() and not (tmp_path / "escape.png").exists()


@pytest.mark.slow
def test_a_run_killed_at_its_end_is_completed(tmp_path: Path) -> None:
    """Killed after the shards stood and before the agreement lay in them."""
    source, output = archive(tmp_path / "archive"), tmp_path / "shards"
    program = [sys.executable, str(ROOT / "data_tools/gather_folder.py"), "--source", str(source)]
    program += ["--output", str(output), *TERMS, "--legal-basis", "public_domain"]
    code = (
        "import os, sys; sys.argv[0] = 'gather'; from data_tools import gather_folder\n"
        "real = gather_folder.download_images\n"
        "gather_folder.download_images = lambda settings: (real(settings), os._exit(9))\n"
        "gather_folder.main(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *program[2:]], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    assert output.exists() and not (output / AGREEMENT).exists()
    other = subprocess.run([*program[:-1], "synthetic", "--generator", "x 1"], capture_output=True, text=True)
    assert other.returncode == 2 and "another agreement" in other.stderr
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    assert (output / AGREEMENT).is_file() and not (tmp_path / "shards.source").exists()
