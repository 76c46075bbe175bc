"""What programs do with tars of others that data_tools/index_shards.py made a shard folder of, and its kills."""

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
from data_tools.download_shards import main as download
from data_tools.indexing import index_jobs
from leam_mm.cli import main as train
from leam_mm.data.remote_shards import ShardCache, open_folder
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError


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
    withdraw("--shards", folder, "--url", "https://a7.example/x.jpg", "--apply", "--unsigned")
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


@pytest.fixture(scope="module")
def img2dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images by img2dataset and by download_shards: folders peer and ours."""
    folder = tmp_path_factory.mktemp("img2dataset")
    links = write_links(folder / "images", 200, missing=3)
    run_img2dataset(links, folder / "peer", 50)
    options = ["--allow-file", "--samples-per-shard", "50", "--min-success", "0.9", "--processes", "1"]
    download(["--table", str(links), "--output", str(folder / "ours"), *options])
    return folder


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
    losses = []
    for number, shards in enumerate((img2dataset / "ours", tmp_path / "peer")):
        recipe = clip_recipe(tmp_path / f"run{number}", shards, toy_tokenizer, max_samples=64)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        train(["fit", "--config", str(tmp_path / "recipe.yaml")])
        losses.append(step_losses(tmp_path / f"run{number}"))
    assert losses[0] == losses[1] and len(losses[0]) == 8


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
