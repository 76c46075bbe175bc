"""Embed images or texts with a trained encoder.

    python -m leam_mm.embed --encoder runs/quickstart/clip --images photos --output photos.parquet
    python -m leam_mm.embed --encoder runs/quickstart/release --images shards --output shards.parquet --processes 8
    python -m leam_mm.embed --encoder ViT-B-32:laion2b_s34b_b79k --texts captions.txt --output captions.parquet

Images come from a folder, with its sub-folders, or from shards; texts from a file with one a line. The output has one
row for each: key, text, url, sha256 and embedding, of length 1. Images that cannot be read are left out and listed in
OUTPUT.faults.jsonl. A killed run continues when the same command is started again. Under torchrun the processes share
the work, too.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.recorded_classes import trust_modules
from leam_mm.run_lock import beside, run_lock


@dataclass(frozen=True)
class EmbedSettings:
    """Settings of the program.

    Args:
        encoder: Run, checkpoint, release, folder of open_clip, or its NAME:TAG.
        output: Parquet file to write.
        images: Folder of images or of shards.
        texts: Text file in UTF-8, one text a line.
        dtype: Type of the stored values.
        batch_size: Images or texts at a time; it changes memory and speed.
        part: Items after which a part is saved.
        processes: Processes that share the work on this machine.
        overwrite: Replace the output, if it exists.
        device: cpu or cuda; with several processes, each takes a GPU of its own.
        trust: Modules of your own, such as my_lab, whose classes the checkpoint may name; several between commas.
    """

    encoder: str
    output: Path
    images: Path | None = None
    texts: Path | None = None
    dtype: Literal["float16", "float32"] = "float16"
    batch_size: PositiveInt = 64
    part: PositiveInt = 4096
    processes: PositiveInt = 1
    overwrite: bool = False
    device: str = "cpu"
    trust: str = ""


def embed_share(settings: EmbedSettings, rank: int, ranks: int) -> tuple[int, int] | None:
    """Embed the parts of one of several processes.

    Returns:
        Numbers of rows and of unreadable items from the first process, which joins the parts; None from the others.
    """
    import torch

    from leam_mm.inference.embedded_items import TextLines, open_images
    from leam_mm.inference.embedder import Embedder
    from leam_mm.inference.embedding_table import TableFacts, TableWriter

    trust_modules(settings.trust)
    if ranks > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    device = f"cuda:{rank % torch.cuda.device_count()}" if settings.device == "cuda" and ranks > 1 else settings.device
    items = open_images(settings.images) if settings.images is not None else TextLines(settings.texts)  # type: ignore[arg-type]
    embedder = Embedder.open(settings.encoder, device)
    facts = TableFacts(
        settings.encoder, embedder.sha256, items.kind, embedder.size, settings.dtype, items.identity, len(items),
        settings.part,
    )  # fmt: skip
    threads = max(1, min(8, (os.cpu_count() or 1) // ranks))
    writer = TableWriter(items, embedder, facts, settings.output, settings.batch_size, threads)
    writer.start()
    with Progress(console=Console(stderr=True), transient=True, disable=rank != 0) as progress:
        own = sum(min(facts.part, facts.items - n * facts.part) for n in range(rank, writer.count, ranks))
        task = progress.add_task("embed", total=own)
        writer.write_parts(rank, ranks, lambda count: progress.advance(task, count))
    return writer.join() if rank == 0 else None


def embed(settings: EmbedSettings) -> tuple[int, int] | None:
    """Embed all items, in the processes of torchrun or of this program."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        return embed_share(settings, rank, ranks)
    with run_lock(beside(settings.output), settings.output.parent):
        if settings.processes == 1:
            return embed_share(settings, 0, 1)
        with ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool:
            shares = [pool.submit(embed_share, settings, n, settings.processes) for n in range(settings.processes)]
            return next(result for result in [share.result() for share in reversed(shares)] if result is not None)


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(EmbedSettings, __doc__, args, program="python -m leam_mm.embed")
    if (settings.images is None) == (settings.texts is None):
        raise UserError("give either --images FOLDER or --texts FILE")
    if settings.output.exists() and not settings.overwrite:
        raise UserError(f"{settings.output} exists: give another --output, or --overwrite")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    if (done := embed(settings)) is None:
        return
    rows, faults = done
    print(f"{settings.output}: {rows} embeddings of {'images' if settings.images is not None else 'texts'}")
    if faults:
        print(f"{faults} could not be read; {settings.output}.faults.jsonl says why")
    if not rows:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
