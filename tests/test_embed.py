"""Embedding, search and classification with a trained encoder, as people run them."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from toys.command_line import fit_here
from toys.images import coloured_square
from toys.recipes import ROOT, clip_recipe

from leam_mm.classify import main as classify
from leam_mm.embed import main as embed
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import embed_images, read_image_samples
from leam_mm.inference import embedding_index
from leam_mm.inference.classification import embed_labels, read_labels
from leam_mm.inference.embedder import Embedder
from leam_mm.inference.embedding_index import EmbeddingIndex
from leam_mm.inference.embedding_table import EmbeddingTable
from leam_mm.search import main as search


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    """Run of a toy encoder."""
    root = tmp_path_factory.mktemp("encoder")
    fit_here(clip_recipe(root / "clip", toy_shards, toy_tokenizer, max_samples=32), root)
    return root / "clip"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images in a folder and a sub-folder, one of them broken, and files that are skipped."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue")):
        (folder / f"{colour}.png").write_bytes(coloured_square(colour, number))
        (folder / "more" / f"{colour} ä<b>.png").write_bytes(coloured_square(colour, number + 9))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "._red.png").write_bytes(b"resource fork")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "red.png").write_bytes(coloured_square("red", 1))
    return folder


def words(encoder: Path, *more: object) -> list[str]:
    return ["--encoder", str(encoder), *map(str, more)]


def vectors(path: Path) -> np.ndarray:
    return np.concatenate(list(EmbeddingTable.open(path).batches()))


def test_shards_are_embedded_as_evaluation_does(encoder: Path, toy_shards: Path, tmp_path: Path) -> None:
    embed(words(encoder, "--images", toy_shards, "--output", tmp_path / "x.parquet", "--dtype", "float32"))
    module = Embedder.open(encoder)
    samples = list(read_image_samples(toy_shards))
    expected = embed_images(module.module, samples, 64, module.device).numpy()
    np.testing.assert_allclose(vectors(tmp_path / "x.parquet"), expected, rtol=0, atol=1e-6)
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["key"] for row in rows] == [sample.key for sample in samples]
    assert rows[0]["text"] == samples[0].record["captions"][0]["text"] and len(rows[0]["sha256"]) == 64


def test_a_folder_with_a_broken_image_is_embedded_and_the_fault_recorded(
    encoder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.parquet"
    embed(words(encoder, "--images", photos, "--output", output, "--part", 2))
    keys = pq.read_table(output)["key"].to_pylist()
    assert keys == ["blue.png", "green.png", *(f"more/{c} ä<b>.png" for c in ("blue", "green", "red")), "red.png"]
    fault = json.loads((tmp_path / "x.parquet.faults.jsonl").read_text())
    assert fault["key"] == "broken.jpg" and "unreadable image" in fault["fault"]
    assert "6 embeddings of images" in (text := capsys.readouterr().out) and "1 could not be read" in text
    assert not (tmp_path / "x.parquet.parts").exists()
    with pytest.raises(UserError, match="exists: give another --output, or --overwrite"):
        embed(words(encoder, "--images", photos, "--output", output))


def test_parts_batches_and_processes_change_nothing(encoder: Path, toy_shards: Path, tmp_path: Path) -> None:
    tables = []
    for name, more in (("a", []), ("b", ["--part", "7"]), ("c", ["--part", "7", "--processes", "2"])):
        output = tmp_path / f"{name}.parquet"
        embed(words(encoder, "--images", toy_shards, "--output", output, "--dtype", "float32", *more))
        tables.append((pq.read_table(output)["key"].to_pylist(), vectors(output)))
    for keys, values in tables[1:]:
        assert keys == tables[0][0]
        np.testing.assert_allclose(values, tables[0][1], rtol=0, atol=1e-6)


def test_a_killed_run_continues_and_ends_with_the_same_bytes(encoder: Path, toy_shards: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    embed(words(encoder, "--images", toy_shards, "--output", whole, "--part", 4))
    command = [sys.executable, "-m", "leam_mm.embed", *words(encoder, "--images", toy_shards, "--output", killed)]
    command += ["--part", "4"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    parts = tmp_path / "killed.parquet.parts"
    for _ in range(1200):
        if len(list(parts.glob("*.parquet"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not killed.exists():  # on a fast machine it may have ended
        before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
        assert len(before) >= 2
        embed(words(encoder, "--images", toy_shards, "--output", killed, "--part", 4))
    assert killed.read_bytes() == whole.read_bytes()


def test_other_settings_do_not_continue_a_run(encoder: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.parquet"
    embed(words(encoder, "--images", photos, "--output", output))
    (tmp_path / "x.parquet.parts").mkdir()
    (tmp_path / "x.parquet.parts" / "settings.json").write_text('{"encoder": "another"}')
    with pytest.raises(UserError, match="was started with another encoder, input or type"):
        embed(words(encoder, "--images", photos, "--output", output, "--overwrite"))


def test_texts_are_found_by_the_same_text(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("﻿a red square\n\nein blauer Kreis\nzwei grüne Sterne\n", encoding="utf-8")
    embed(words(encoder, "--texts", tmp_path / "t.txt", "--output", tmp_path / "t.parquet"))
    capsys.readouterr()
    search(["--index", str(tmp_path / "t.parquet"), "--text", "ein blauer Kreis", "--count", "1"])
    text = capsys.readouterr().out
    assert "ein blauer Kreis" in text and "1.0000" in text and "3 rows searched" in text


def test_an_image_finds_itself_and_the_page_is_harmless(
    encoder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed(words(encoder, "--images", photos, "--output", tmp_path / "x.parquet"))
    page = tmp_path / "found.html"
    capsys.readouterr()
    more = ["--image", str(photos / "red.png"), "--html", str(page), "--images", str(photos)]
    search(["--index", str(tmp_path / "x.parquet"), *more])
    assert " red.png" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("1 "))
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 6 and "ä&lt;b&gt;.png" in html and "<b>" not in html


def test_another_encoder_and_other_files_are_refused(
    encoder: Path, photos: Path, toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    fit_here(clip_recipe(tmp_path / "other", toy_shards, toy_tokenizer, max_samples=16), tmp_path)
    embed(words(encoder, "--images", photos, "--output", tmp_path / "x.parquet"))
    with pytest.raises(UserError, match="was embedded with another encoder"):
        search(["--index", str(tmp_path / "x.parquet"), "--text", "a", "--encoder", str(tmp_path / "other")])
    pq.write_table(pq.read_table(tmp_path / "x.parquet").replace_schema_metadata(None), tmp_path / "plain.parquet")
    for name in ("plain.parquet", "nothing.parquet"):
        with pytest.raises(UserError, match=rf"{name} is no table of embeddings"):
            search(["--index", str(tmp_path / name), "--text", "a"])
    with pytest.raises(UserError, match="give either"):
        search(["--index", str(tmp_path / "x.parquet")])


@pytest.mark.parametrize("most_quantized", [256, 0])
def test_the_index_of_a_large_table_finds_what_an_exact_search_finds(
    encoder: Path, toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_quantized: int
) -> None:
    output = tmp_path / "x.parquet"
    embed(words(encoder, "--images", toy_shards, "--output", output))
    table = EmbeddingTable.open(output)
    exact = EmbeddingIndex(table)
    monkeypatch.setattr(embedding_index, "EXACT", 10)
    monkeypatch.setattr(embedding_index, "MOST_QUANTIZED", most_quantized)
    monkeypatch.setattr(embedding_index, "CANDIDATES", 96)
    index = EmbeddingIndex(table)
    assert (tmp_path / "x.parquet.index" / "codes.faiss").is_file()
    for query in vectors(output)[::17]:
        (row, cosine), *_ = index.search(query, 5)
        assert [n for n, _ in index.search(query, 5)] == [n for n, _ in exact.search(query, 5)]
        assert cosine == pytest.approx(1, abs=2e-3) and index.lines([row]) == exact.lines([row])
    built = (tmp_path / "x.parquet.index" / "codes.faiss").stat().st_mtime_ns
    EmbeddingIndex(table)  # is there already
    assert (tmp_path / "x.parquet.index" / "codes.faiss").stat().st_mtime_ns == built
    embed(words(encoder, "--images", toy_shards, "--output", output, "--overwrite", "--dtype", "float32"))
    EmbeddingIndex(EmbeddingTable.open(output))  # of another table
    assert (tmp_path / "x.parquet.index" / "codes.faiss").stat().st_mtime_ns > built


def test_labels_of_images_are_those_of_the_formula(
    encoder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    more = ["--labels", str(tmp_path / "labels.txt"), "--output", str(tmp_path / "l.csv"), "--top", "3"]
    more += ["--html", str(tmp_path / "l.html")]
    classify(words(encoder, "--images", photos, *more))
    rows = list(csv.DictReader((tmp_path / "l.csv").open(encoding="utf-8")))
    assert [row["key"] for row in rows][:2] == ["blue.png", "broken.jpg"]
    assert rows[1]["fault"] and not rows[1]["label_1"]
    assert "6 images by 3 labels; 1 could not be read" in capsys.readouterr().out
    module = Embedder.open(encoder)
    embed(words(encoder, "--images", photos, "--output", tmp_path / "x.parquet", "--dtype", "float32"))
    logits = module.scale * vectors(tmp_path / "x.parquet") @ module.embed_texts(["red", "green", "blue"]).T
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    sound = [row for row in rows if not row["fault"]]
    for row, chance in zip(sound, chances, strict=True):
        given = {row[f"label_{n}"]: float(row[f"probability_{n}"]) for n in (1, 2, 3)}
        np.testing.assert_allclose([given[name] for name in ("red", "green", "blue")], chance, atol=1e-5)
    assert "ä&lt;b&gt;.png" in (tmp_path / "l.html").read_text()


def test_labels_are_lines_or_the_names_of_a_language(encoder: Path, tmp_path: Path) -> None:
    languages = {"de": {"templates": ["ein Bild: {}", "{}"], "names": {"1": ["rot"], "2": ["grün", "Grün"]}}}
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["1", "2"], "languages": languages}))
    german = read_labels("de", tmp_path / "classes.json", [])
    assert len(german.names) == 2 and german.prompts[0] == ["ein Bild: rot", "rot"]
    module = Embedder.open(encoder)
    texts = module.embed_texts(german.prompts[0]).astype(np.float64).sum(0)
    np.testing.assert_allclose(embed_labels(module, german)[0], texts / np.linalg.norm(texts), atol=1e-6)
    (tmp_path / "l.txt").write_text("a\nb\n")
    assert read_labels(str(tmp_path / "l.txt"), None, ["ein {}", "der {}"]).prompts[1] == ["ein b", "der b"]
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    for given, classes, templates, message in (
        ("de", None, [], "give its class names with --classes"),
        (str(tmp_path / "twice.txt"), None, [], "'a' twice"),
        (str(tmp_path / "none.txt"), None, [], "cannot be read"),
        (str(tmp_path / "l.txt"), None, ["ein Bild"], "in place of the label"),
    ):
        with pytest.raises(UserError, match=message):
            read_labels(given, classes, templates)


def test_the_page_on_use_is_true(
    encoder: Path, toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and lines of docs/use.md, on a toy encoder."""
    page = (ROOT / "docs/use.md").read_text(encoding="utf-8").split("\n## Embed, search, classify\n")[1]
    monkeypatch.chdir(tmp_path)
    for name, target in (("clip", encoder), ("shards/test", toy_shards)):
        (tmp_path / "runs/quickstart" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/quickstart" / name).symlink_to(target)
    (tmp_path / "runs/quickstart/scenes").mkdir()
    languages = {"de": {"names": {"1": ["rot"], "2": ["blau"]}}}
    (tmp_path / "runs/quickstart/scenes/classes.json").write_text(
        json.dumps({"classes": ["1", "2"], "languages": languages})
    )
    (tmp_path / "labels.txt").write_text("red\nblue\n")
    for line in page.split("```sh\n")[1].split("```")[0].splitlines():
        words = shlex.split(line)
        {"embed": embed, "search": search, "classify": classify}[words[2].removeprefix("leam_mm.")](words[3:])
    assert all((tmp_path / name).is_file() for name in ("test.parquet", "found.html", "labels.csv", "german.csv"))
    names: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert len(names["found"]) == 10 and len(names["vectors"]) == names["table"].rows
