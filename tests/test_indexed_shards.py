"""What programs do with tars of others that data_tools/index_shards.py made a shard folder of, and its kills."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
import yaml
from toys.foreign_tars import captions_of, faults_of, index, pair, run_img2dataset, shard_writer, write_links, write_tar
from toys.images import soft_jpeg
from toys.published import withdraw
from toys.recipes import ROOT, clip_recipe
from toys.runs import step_losses
from toys.vetting import file_digests, read_ledger, vet, write_rules
from toys.vetting_rules import Third

from data_tools.check_shards import main as check
from data_tools.describe_dataset import main as describe
from data_tools.download_shards import main as download
from data_tools.embed_shards import main as embed
from data_tools.encode_latents import main as encode
from data_tools.indexing import index_jobs
from data_tools.train_tokenizer import main as train_tokenizer
from leam_mm.cli import main as train
from leam_mm.data.remote_shards import ShardCache, open_folder
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError
from leam_mm.release.shard_counts import count_column


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_vetting_search_and_withdrawal_work_on_the_result(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tars = tmp_path / "tars"
    for number in range(2):
        items = []
        for n in range(number * 6, number * 6 + 6):
            said = json.dumps({"url": f"https://a{n}.example/x.jpg"}).encode()
            items += [*pair(f"{n:04d}", n), (f"{n:04d}.json", said)]
        write_tar(tars / f"{number}.tar", items)
    folder = tars if where == "beside" else tmp_path / "out"
    index(tars, *(["--output", folder] if where == "elsewhere" else []))
    kept = vet(folder, write_rules(tmp_path / "r.yaml", Third), tmp_path / "kept")
    copied = vet(folder, tmp_path / "r.yaml", tmp_path / "copied", "--materialise")
    assert list(read_samples(kept)) == list(read_samples(copied)) and faults_of(copied) == []
    check([str(folder), "--contains", "https://a7.example/x.jpg"])
    image = tmp_path / "x.jpg"
    image.write_bytes(soft_jpeg(7))
    check([str(folder), "--contains", str(image)])
    old, before = {key: members for key, members in read_samples(folder)}, ShardFolder(folder)
    capsys.readouterr()
    withdraw("--shards", folder, "--url", "https://a7.example/x.jpg", "--apply", "--unsigned")
    # A tar elsewhere still holds the image: it is named.
    said = capsys.readouterr().out
    assert ("may still hold the samples" in said) == (where == "elsewhere")
    assert ("tars/1.tar" in said) == (where == "elsewhere")
    new, after = {key: members for key, members in read_samples(folder)}, ShardFolder(folder)
    assert set(old) - set(new) == {"0007"} and all(old[key] == new[key] for key in new)
    assert faults_of(folder) == [] and after.shards[0] == before.shards[0] and after.merkle_root != before.merkle_root
    assert (after.shards[1].records is None) == (where == "beside")
    assert after.shards[1].sha256 == before.shards[1].sha256 or where == "beside"
    for path in folder.iterdir():  # neither caption nor address nor image is left in the folder
        if path.is_file():
            assert b"a7.example" not in path.read_bytes() and soft_jpeg(7)[40:] not in path.read_bytes(), path
    with pytest.raises(SystemExit):
        check([str(folder), "--contains", "https://a7.example/x.jpg"])
    # It does not return when the tars are indexed again.
    if where == "elsewhere":
        shutil.rmtree(folder)
        index(tars, "--output", folder)
        assert "0007" not in captions_of(folder) and len(captions_of(folder)) == 11
        assert "withdrawn earlier 1" in capsys.readouterr().out


def test_remote_tars_are_indexed_trained_on_and_adopted(tmp_path: Path) -> None:
    local = shard_writer(tmp_path / "local")
    system = fsspec.filesystem("memory")
    for path in local.glob("*.tar"):
        system.pipe(f"/index_shards/{path.name}", path.read_bytes())
    with pytest.raises(UserError, match="give --output"):
        index("memory://index_shards/train-{000000..000009}.tar")
    index("memory://index_shards/train-{000000..000009}.tar", "--output", tmp_path / "out")
    index("memory://index_shards/*.tar", "--output", tmp_path / "again")
    index(local)
    roots = {ShardFolder(path).merkle_root for path in (tmp_path / "out", tmp_path / "again", local)}
    assert len(roots) == 1
    with pytest.raises(UserError, match=r"train\.py reads them there"):
        list(read_samples(tmp_path / "out"))
    cache = ShardCache(tmp_path / "cache")
    remote = open_folder(tmp_path / "out", cache)
    with remote.open_shard(1) as shard:
        assert [shard.members(row) for row in range(10)] == [members for _, members in read_samples(local)][10:20]
    # The whole folder uploaded, index and records beside the tars, or apart from them.
    for name, source in (("beside", local), ("apart", tmp_path / "out")):
        for path in source.iterdir():
            system.pipe(f"/{name}/{path.name}", path.read_bytes())
        folder = open_folder(f"memory://{name}", ShardCache(tmp_path / name))
        assert folder.merkle_root in roots
        with folder.open_shard(2) as shard:
            assert shard.raw(9) == remote.open_shard(2).raw(9)
    index("memory://index_shards/*.tar", "--output", tmp_path / "own", "--materialise", "--samples-per-shard", 12)
    own = ShardFolder(tmp_path / "own")
    assert [entry.samples for entry in own.shards] == [12, 12, 6] and faults_of(own.path) == []
    assert list(read_samples(own.path)) == list(read_samples(local))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("own")) == ["own"]


def test_a_folder_of_tars_without_an_index_names_the_program(tmp_path: Path) -> None:
    write_tar(tmp_path / "t/0.tar", pair("0"))
    with pytest.raises(UserError, match=r"index_shards\.py"):
        ShardFolder(tmp_path / "t")
    index(tmp_path / "t")
    with pytest.raises(UserError, match="is a shard folder already"):
        index(tmp_path / "t")


def same_keys(folder: Path, tars: int) -> Path:
    """Tars whose keys are all the same, so that indexes are written twice."""
    for number in range(tars):
        write_tar(folder / f"{number:05d}.tar", pair("same", number % 7))
    return folder


@pytest.mark.parametrize("materialise", [False, True])
def test_killed_between_any_two_writes_it_ends_with_the_same_bytes(
    materialise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_jobs, "JOB_TARS", 2)
    tars = same_keys(tmp_path / "tars", 5)
    options = ["--materialise", "--samples-per-shard", 2] if materialise else []
    index(tars, "--output", tmp_path / "whole", *options)
    for step in range(100):
        calls, out = [0], tmp_path / f"out{step}"

        def replace_until(
            *names: object, real: object = os.replace, calls: list[int] = calls, step: int = step
        ) -> None:
            calls[0] += 1
            if calls[0] > step:
                raise KeyboardInterrupt
            real(*names)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_until)
            with suppress(KeyboardInterrupt):
                index(tars, "--output", out, *options)
        if calls[0] <= step:
            break
        if not (out / "manifest.jsonl").is_file() or (out / "index_shards.work").is_dir():
            index(tars, "--output", out, *options)
        assert file_digests(out) == file_digests(tmp_path / "whole"), step
    assert 10 < step < 99
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == [
        *sorted(f"out{number}" for number in range(step + 1))
    ]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    tars = same_keys(tmp_path / "tars", 2000)
    index(tars, "--output", tmp_path / "whole")
    command = [sys.executable, "-m", "data_tools.index_shards", str(tars), "--output", str(tmp_path / "out"),
               "--legal-basis", "synthetic", "--workers", "2"]  # fmt: skip
    kills, draw = 0, random.Random(0)
    while True:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.5, 2) + 0.3 * kills)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait() == 0 and kills
    assert file_digests(tmp_path / "out") == file_digests(tmp_path / "whole")
    assert len(captions_of(tmp_path / "out")) == 2000


def fetch_both(folder: Path, count: int, per_shard: int, missing: int = 0) -> Path:
    """Fetch images by img2dataset and by download_shards: folders peer and ours."""
    links = write_links(folder / "images", count, missing)
    run_img2dataset(links, folder / "peer", per_shard)
    options = ["--allow-file", "--samples-per-shard", str(per_shard), "--min-success", "0.9", "--processes", "1"]
    download(["--table", str(links), "--output", str(folder / "ours"), *options])
    return folder


def losses_of(shards: Path, run: Path, tokenizer: Path, max_samples: int) -> list[tuple[str, str]]:
    """Train a toy CLIP."""
    recipe = clip_recipe(run, shards, tokenizer, max_samples=max_samples)
    run.with_suffix(".yaml").write_text(yaml.safe_dump(recipe))
    train(["fit", "--config", str(run.with_suffix(".yaml"))])
    return step_losses(run)


@pytest.fixture(scope="module")
def img2dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images of 203 links."""
    return fetch_both(tmp_path_factory.mktemp("img2dataset"), 200, 50, missing=3)


def test_shards_of_img2dataset_train_as_the_same_images_through_download_shards(
    img2dataset: Path, toy_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    index(img2dataset / "peer", "--output", tmp_path / "peer")
    said = capsys.readouterr().out
    assert said.startswith("img2dataset shards, 5 tars from 00000.tar to 00004.tar")
    assert "link that img2dataset could not store 3" in said
    ours, peer = list(read_samples(img2dataset / "ours")), list(read_samples(tmp_path / "peer"))
    assert [members["jpg"] for _, members in ours] == [members["jpg"] for _, members in peer] and len(peer) == 200
    records = [[json.loads(members["json"]) for _, members in found] for found in (ours, peer)]
    for mine, theirs in zip(*records, strict=True):
        same = ("sha256", "width", "height")
        assert {name: mine[name] for name in same} == {name: theirs[name] for name in same}
        assert theirs["metadata"]["status"] == "success" and len(theirs["metadata"]["key"]) == 7
        assert theirs["url"].startswith("file://") and theirs["crawler"] == "img2dataset"
    losses = [losses_of(folder, tmp_path / name, toy_tokenizer, 64) for name, folder in
              (("a", img2dataset / "ours"), ("b", tmp_path / "peer"))]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 8


@pytest.mark.slow
def test_ten_thousand_samples_of_img2dataset_train_with_equal_losses(tmp_path: Path, toy_tokenizer: Path) -> None:
    fetch_both(tmp_path, 10_000, 1000)
    index(tmp_path / "peer")
    losses = [losses_of(tmp_path / name, tmp_path / f"run_{name}", toy_tokenizer, 10_000) for name in ("ours", "peer")]
    assert losses[0] == losses[1] and len(losses[0]) == 1250
    assert ShardFolder(tmp_path / "peer").samples == 10_000 and faults_of(tmp_path / "peer") == []


def test_failed_links_of_img2dataset_are_in_the_ledger_and_it_runs_again_in_its_folder(
    img2dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(img2dataset / "peer", tmp_path / "peer")
    index(tmp_path / "peer")
    failed = [row for row in read_ledger(tmp_path / "peer") if not row["kept"]]
    assert [row["rule"] for row in failed] == ["img2dataset"] * 3 and "No such file" in failed[0]["reason"]
    assert failed[0]["url"].endswith("00200.jpg") and failed[0]["value"] == "failed_to_download"
    # img2dataset takes the number in the name of every *.json in its folder.
    assert all(path.name.endswith("_stats.json") for path in (tmp_path / "peer").glob("*.json"))


def test_a_withdrawal_names_the_table_of_img2dataset(
    img2dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(img2dataset / "peer", tmp_path / "peer")
    index(tmp_path / "peer")
    url = json.loads(list(read_samples(tmp_path / "peer"))[60][1]["json"])["url"]
    withdraw("--shards", tmp_path / "peer", "--url", url, "--apply", "--unsigned")
    assert f"may still hold the samples: {tmp_path}/peer/00001.parquet" in capsys.readouterr().out
    assert faults_of(tmp_path / "peer") == [] and ShardFolder(tmp_path / "peer").samples == 199


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_an_unknown_legal_basis_stays_visible_in_all_documents(where: str, tmp_path: Path) -> None:
    tars = shard_writer(tmp_path / "tars")
    folder = tars if where == "beside" else tmp_path / "out"
    index(tars, *(["--output", folder] if where == "elsewhere" else []), basis="unknown")
    describe(["--shards", str(folder), "--output", str(tmp_path / "description")])
    found = {path.name: path.read_text("utf-8") for path in (tmp_path / "description").iterdir()}
    assert json.loads(found["statistics.json"])["legal_basis"] == {"unknown": 30}
    assert '"legal_bases": {\n' in found["training_summary.json"] and "unknown" in found["training_summary.json"]
    assert "Samples by legal basis: unknown 30." in found["croissant.json"]
    assert all("unknown" in found[name] for name in ("statistics.html", "training_summary.md"))
    assert count_column(ShardFolder(folder), "legal_basis") == {"unknown": 30}  # of the model card
    # Croissant names the tars where they are, and the files that hold their records.
    files = [each for each in json.loads(found["croissant.json"])["distribution"] if each["@type"] == "cr:FileObject"]
    for each in files:
        path = (tmp_path / "description" / each["contentUrl"]).resolve()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == each["sha256"], each
    assert len(files) == 6


def test_programs_that_make_folders_of_shards_take_the_result(tmp_path: Path, toy_checkpoints: dict[str, Path]) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "0.tar", [item for n in range(10) for item in pair(f"train.v1/{n:04d}", n)])
    index(tars)
    encode(["--shards", str(tars), "--codec", str(toy_checkpoints["codec"]), "--clip", str(toy_checkpoints["clip"]),
            "--output", str(tmp_path / "latents"), "--image-size", "16"])  # fmt: skip
    embed(["--shards", str(tars), "--teacher", str(toy_checkpoints["clip"]), "--output", str(tmp_path / "taught")])
    train_tokenizer(["--shards", str(tars), "--output", str(tmp_path / "tok"), "--vocabulary", "290",
                     "--context-length", "12"])  # fmt: skip
    assert faults_of(tmp_path / "latents") == faults_of(tmp_path / "taught") == []
    assert captions_of(tmp_path / "taught") == captions_of(tars)
