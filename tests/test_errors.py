"""Bad input end to end: one line that starts with error:, a code that is not 0, and nothing half-written."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from toys.images import coloured_square
from toys.recipes import CODEC_SECTION, ROOT, clip_recipe, save_checkpoint
from toys.shards import write_toy_shards

from leam_mm import cli
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError, one_line, run


def error_line(program: Callable[[], object], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a program that must fail; return its error line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(program)
    assert caught.value.code == code
    written = capsys.readouterr().err
    lines = [line for line in written.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and written.rstrip().endswith(lines[0]), written
    assert "Traceback" not in written
    return lines[0]


def script(name: str, *words: object) -> Callable[[], object]:
    """A program as a function that acts like `python NAME WORDS`."""

    def start() -> None:
        before = sys.argv
        sys.argv = [name, *(str(word) for word in words)]
        try:
            runpy.run_path(str(ROOT / name))["main"]()
        finally:
            sys.argv = before

    return start


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def fit(recipe: dict[str, Any], folder: Path, *words: str) -> Callable[[], object]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return lambda: cli.main(["fit", "--config", str(folder / "recipe.yaml"), *words])


def test_run_prints_one_line_and_exits_with_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise UserError("a.txt: line 3\nis   wrong; fix it")

    assert error_line(wrong, capsys) == "error: a.txt: line 3 is wrong; fix it"


def test_interrupted_program_says_how_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert "same command again" in error_line(interrupted, capsys, code=130)


def test_other_errors_keep_their_traceback() -> None:
    def fault() -> None:
        raise ZeroDivisionError("a fault of the program")

    with pytest.raises(ZeroDivisionError):
        run(fault)


def test_traceback_of_a_worker_is_cut_off() -> None:
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File"
    message = f"{wrapped} x\nleam_mm.errors.UserError: 00000.tar, key 7: unreadable image; fix it\n"
    assert one_line(UserError(message)) == "00000.tar, key 7: unreadable image; fix it"


@pytest.mark.parametrize(
    ("columns", "part"), [({"url": ["a"], "words": ["b"]}, "caption"), ({"url": [], "caption": []}, "links.parquet")]
)
def test_table_without_column_or_rows(
    columns: dict[str, list[str]], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "links.parquet")
    before = files(tmp_path)
    program = script(
        "data_tools/download_shards.py", "--table", tmp_path / "links.parquet", "--output", tmp_path / "shards"
    )
    line = error_line(program, capsys)
    assert "links.parquet" in line and part in line
    assert files(tmp_path) == before


def broken_shards(folder: Path) -> Path:
    with ShardWriter(folder, 8) as writer:
        for number in range(8):
            record = {"captions": [{"text": "a", "language": "en"}]}
            picture = coloured_square("red", number)
            writer.write(
                f"{number:06d}",
                {"png": picture[:60] if number == 3 else picture, "json": json.dumps(record).encode()},
            )
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_in_training(
    workers: int, tmp_path: Path, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = broken_shards(tmp_path / "shards")
    line = error_line(fit(clip_recipe(tmp_path / "run", shards, toy_tokenizer, workers=workers), tmp_path), capsys)
    assert f"{shards}/00000.tar, key 000003: unreadable image" in line and "check_shards" in line
    assert not [name for name in files(tmp_path) if "tmp" in name or "partial" in name or name.endswith(".ckpt")]


def test_truncated_tar_in_training_and_in_the_check(
    tmp_path: Path, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_toy_shards(tmp_path / "shards", samples=8, samples_per_shard=8)
    tar = shards / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1500])
    line = error_line(fit(clip_recipe(tmp_path / "run", shards, toy_tokenizer), tmp_path), capsys)
    assert "00000.tar has" in line and "copy or build the shard again" in line
    assert not list(tmp_path.rglob("*.ckpt"))
    before = files(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(script("data_tools/check_shards.py", shards))
    output = capsys.readouterr().out
    assert caught.value.code == 1 and output.count("broken: ") == 1 and "00000.tar has" in output
    assert files(tmp_path) == before
    assert "no shard folder" in error_line(script("data_tools/check_shards.py", tmp_path / "nothing"), capsys)


def test_unknown_key_writes_nothing(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    recipe["model"]["init_args"]["warm_up"] = 3
    line = error_line(fit(recipe, tmp_path), capsys)
    assert f"{tmp_path}/recipe.yaml: unknown key 'model.init_args.warm_up'" in line
    assert files(tmp_path) == {"recipe.yaml"}


def test_what_a_constructor_refuses_is_one_line(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    recipe["data"]["init_args"]["image"]["crop_scale"] = [2.0, 3.0]
    assert "crop_scale (2.0, 3.0) must satisfy" in error_line(fit(recipe, tmp_path), capsys)
    assert files(tmp_path) == {"recipe.yaml"}


@pytest.fixture(scope="module")
def codec_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the checkpoint of a codec."""
    folder = tmp_path_factory.mktemp("codec")
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints" / "last.ckpt", CODEC_SECTION)
    return folder


def test_checkpoint_of_another_model_in_evaluation(
    codec_run: Path, toy_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval = {"shards": str(toy_shards), "languages": ["de"]}
    evaluator = {"class_path": "leam_mm.evaluators.retrieval.Retrieval", "init_args": retrieval}
    output = str(tmp_path / "evaluation")
    recipe = {"clip": str(codec_run), "output": output, "device": "cpu", "evaluators": [evaluator]}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(recipe))
    line = error_line(script("evaluate.py", "--config", tmp_path / "evaluate.yaml"), capsys)
    assert "holds a LatentCodecModule, but a ContrastiveModule is needed" in line
    assert not [name for name in files(tmp_path) if name.endswith((".html", ".jsonl")) or "tmp" in name]


def test_checkpoint_of_another_model_in_release(
    codec_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from leam_mm.release.__main__ import main

    words = ["build", "--clip", str(codec_run), "--name", "x", "--output", str(tmp_path / "release")]
    assert "holds a LatentCodecModule" in error_line(lambda: main(words), capsys)
    assert files(tmp_path) == set()


def test_checkpoint_of_another_model_in_training(
    codec_run: Path, toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(codec_run)
    line = error_line(fit(clip_recipe(codec_run, toy_shards, toy_tokenizer), tmp_path), capsys)
    assert "is a checkpoint of leam_mm.codec_module.LatentCodecModule" in line and "another folder" in line
    assert files(codec_run) == before


def test_damaged_checkpoint_in_training(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    before = files(tmp_path / "run")
    line = error_line(fit(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer), tmp_path), capsys)
    assert "last.ckpt cannot be read as a checkpoint" in line
    assert files(tmp_path / "run") == before
