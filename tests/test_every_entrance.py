"""Every row of the table in docs/data.md: its command makes a shard folder of what people have, and it trains."""

import csv
import json
import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.command_line import fit_here
from toys.foreign_tars import captions_of, run_img2dataset, shard_writer, write_links
from toys.images import soft_jpeg
from toys.mds import write_mds
from toys.recipes import ROOT, clip_recipe
from toys.runs import step_losses
from toys.servers import Server
from toys.warc import WarcFile

COUNT = 12
CAPTIONS = [f"caption {number}" for number in range(COUNT)]
TABLE = (ROOT / "docs/data.md").read_text(encoding="utf-8").split("## Choose an entrance\n")[1].split("\n## ")[0]
ROWS = [line.strip("|").split(" | ") for line in TABLE.splitlines() if line.startswith("| ") and "`python" in line]
COMMANDS = {cells[0].strip(): re.findall(r"`(python [^`]+)`", cells[1]) for cells in ROWS}


def serve(server: Server) -> list[str]:
    """Put the images on a server, and return their addresses."""
    for number in range(COUNT):
        server.answers[f"/{number},a.jpg"] = (200, {"Content-Type": "image/jpeg"}, soft_jpeg(number))
    return [f"{server.url}/{number},a.jpg" for number in range(COUNT)]


def files(folder: Path) -> list[str]:
    """Write the images into a folder, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        (folder / f"{number:02d}.jpg").write_bytes(soft_jpeg(number))
    return [f"{number:02d}.jpg" for number in range(COUNT)]


def img2dataset_tars(here: Path, server: Server) -> None:
    run_img2dataset(write_links(here / "images", COUNT), here / "laion", 5)


def webdataset_tars(here: Path, server: Server) -> None:
    shard_writer(here / "writer")


def mds(here: Path, server: Server) -> None:
    samples = [{"caption": text.encode(), "image": soft_jpeg(n)} for n, text in enumerate(CAPTIONS)]
    write_mds(here / "mds", {"caption": ("str", None), "image": ("jpeg", None)}, samples)


def hub_parquet(here: Path, server: Server) -> None:
    (here / "hub/data").mkdir(parents=True)
    images = [{"bytes": soft_jpeg(n), "path": f"{n}.jpg"} for n in range(COUNT)]
    for part in range(2):
        half = slice(part * COUNT // 2, (part + 1) * COUNT // 2)
        pq.write_table(pa.table({"image": images[half], "text": CAPTIONS[half]}), here / f"hub/data/{part}.parquet")


def imagefolder(here: Path, server: Server) -> None:
    names = files(here / "imagefolder/train")
    lines = [json.dumps({"file_name": n, "text": t}) for n, t in zip(names, CAPTIONS, strict=True)]
    (here / "imagefolder/train/metadata.jsonl").write_text("\n".join(lines))


def class_folders(here: Path, server: Server) -> None:
    for number in range(COUNT):
        path = here / f"classes/caption {number}" / "x.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(soft_jpeg(number))


def open_clip_csv(here: Path, server: Server) -> None:
    names = files(here / "pictures")
    with (here / "open_clip.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("filepath", "title"), *((f"pictures/{n}", t) for n, t in zip(names, CAPTIONS, strict=True))])


def cc3m_tsv(here: Path, server: Server) -> None:
    lines = [f"{text}\t{url}\n" for text, url in zip(CAPTIONS, serve(server), strict=True)]
    (here / "Train_GCC-training.tsv").write_text("".join(lines))


def laion_parquet(here: Path, server: Server) -> None:
    (here / "laion400m").mkdir()
    columns = {"SAMPLE_ID": list(range(COUNT)), "URL": serve(server), "TEXT": CAPTIONS, "HEIGHT": [64] * COUNT}
    columns |= {"WIDTH": [72] * COUNT, "LICENSE": ["?"] * COUNT, "NSFW": ["UNLIKELY"] * COUNT}
    columns |= {"similarity": [0.3] * COUNT}
    table = pa.table(columns)
    for part in range(2):
        half = table.slice(part * COUNT // 2, COUNT // 2)
        pq.write_table(half, here / f"laion400m/part-{part:05d}.parquet")


def datacomp_parquet(here: Path, server: Server) -> None:
    (here / "datacomp").mkdir()
    columns = {"uid": [f"{n:032x}" for n in range(COUNT)], "url": serve(server), "text": CAPTIONS}
    columns |= {"original_width": [72] * COUNT, "original_height": [64] * COUNT, "sha256": ["0" * 64] * COUNT}
    columns |= {"clip_b32_similarity_score": [0.3] * COUNT, "face_bboxes": [[[0.1, 0.1, 0.2, 0.2]]] * COUNT}
    pq.write_table(pa.table(columns), here / "datacomp/0.parquet")


def list_of_addresses(here: Path, server: Server) -> None:
    (here / "urls.txt").write_text("# images of a lake\n" + "\n".join(serve(server)) + "\n")


def company_folder(here: Path, server: Server) -> None:
    for name, text in zip(files(here / "archive/2025"), CAPTIONS, strict=True):
        (here / "archive/2025" / name).with_suffix(".txt").write_text(text)
    (here / "contract.pdf").write_bytes(b"agreed")


def warc(here: Path, server: Server) -> None:
    (here / "crawl").mkdir()
    images = [f'<img src="{url}" alt="{text}">' for url, text in zip(serve(server), CAPTIONS, strict=True)]
    with WarcFile(here / "crawl/0.warc.gz") as file:
        file.add(f"{server.url}/index.html", f"<html><body>{''.join(images)}</body></html>")


ENTRANCES: dict[str, Callable[[Path, Server], None]] = {
    "tars of img2dataset (LAION, DataComp, CC12M)": img2dataset_tars,
    "tars of webdataset's ShardWriter": webdataset_tars,
    "MosaicML MDS": mds,
    "Hugging Face parquet with images": hub_parquet,
    "Hugging Face imagefolder": imagefolder,
    "a folder for each class": class_folders,
    "csv of open_clip": open_clip_csv,
    "tsv of CC3M": cc3m_tsv,
    "parquet of LAION": laion_parquet,
    "parquet of DataComp": datacomp_parquet,
    "a list of addresses": list_of_addresses,
    "a company's archive": company_folder,
    "web pages in WARC": warc,
}


def run(command: str, server: Server) -> None:
    """Run a command of the page in this process; private addresses are allowed, as those of the test's server."""
    words = shlex.split(command)
    program = words[1].removeprefix("data_tools/").removesuffix(".py")
    options = words[2:]
    if program in ("download_shards", "screen_links") and "--folder" not in options:
        options += ["--allow-private", "127.0.0.1"]
    if program in ("download_shards", "gather_folder", "import_samples"):
        options += ["--", "--processes", "1"] if program == "gather_folder" else ["--processes", "1"]
    import_module(f"data_tools.{program}").main(options)


def test_the_table_names_every_entrance() -> None:
    assert COMMANDS.keys() == ENTRANCES.keys()


@pytest.mark.parametrize("name", ENTRANCES)
def test_the_command_makes_shards_that_train(
    name: str, server: Server, tmp_path: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.answers["/robots.txt"] = (200, {"Content-Type": "text/plain"}, b"User-agent: *\nAllow: /\n")
    ENTRANCES[name](tmp_path, server)
    for command in COMMANDS[name]:
        run(command, server)
    places = {"tars of img2dataset (LAION, DataComp, CC12M)": "laion", "tars of webdataset's ShardWriter": "writer"}
    shards = tmp_path / places.get(name, "shards")
    expected = {"tars of img2dataset (LAION, DataComp, CC12M)": [f"image {n} of {COUNT}" for n in range(COUNT)]}
    expected["tars of webdataset's ShardWriter"] = [f"caption {n}" for n in range(30)]
    expected["a list of addresses"] = ["a photo of a lake"] * COUNT
    assert sorted(captions_of(shards).values()) == sorted(expected.get(name, CAPTIONS))
    recipe = clip_recipe(tmp_path / "run", shards, toy_tokenizer, max_samples=24)
    recipe["data"]["init_args"]["batch_size"] = 8
    fit_here(recipe, tmp_path / "recipes")
    assert len(step_losses(tmp_path / "run")) == 3
