"""Store a larger encoder's embeddings with the samples, for distillation (leam_mm/losses/distillation.py).

    python data_tools/embed_shards.py --shards run/shards/train --teacher run/large_clip --output run/shards/taught

Writes the same samples with two more members: ``teacher_image.npy`` (D') of the whole image, and ``teacher_text.npy``
(captions, D'), one row for each caption of the json in its order; unit length, float16. If the shards already hold a
teacher's embeddings, the new ones are appended: run the program once per teacher. To resume an interrupted run, give
the same command again; it continues after the last finished shard.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.latents.shard_embedding import Embedding, open_teacher, write_embeddings
from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.data.ledger import LEDGER, LedgerWriter
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError, run
from leam_mm.files import write_text
from leam_mm.recorded_classes import trust_modules
from leam_mm.run_lock import beside, run_lock

SETTINGS = "embedding.json"


@dataclass(frozen=True)
class EmbedSettings:
    """Settings of the program.

    Args:
        shards: Folder of final shards, or of shards with a teacher's embeddings.
        teacher: Run or checkpoint of a contrastive model, or open_clip's folder or NAME:TAG.
        output: Folder to write.
        tokenizer: For open_clip's models, a folder or open_clip; by default the teacher's.
        batch_size: Samples at once; changes speed and memory only.
        device: cpu or cuda.
        trust: Modules of your own, such as my_lab, whose classes the teacher may name; several between commas.
    """

    shards: Path
    teacher: str
    output: Path
    tokenizer: str | None = None
    batch_size: PositiveInt = 256
    device: str = "cpu"
    trust: str = ""


def is_finished(folder: Path, embedding: Embedding) -> bool:
    """Return whether the folder already holds exactly this output.

    Raises:
        UserError: The folder, or an unfinished one, was written with other settings.
    """
    for path in (folder, folder.with_name(folder.name + ".partial")):
        if not path.exists():
            continue
        try:
            same = json.loads((path / SETTINGS).read_text(encoding="utf-8")) == asdict(embedding)
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{path} was written with other data or another teacher: delete it, or change --output")
        if path == folder:
            return True
    return False


def embed_shards(settings: EmbedSettings, console: Console) -> None:
    """Write the shards with the teacher's embeddings."""
    trust_modules(settings.trust)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {settings.device}: no GPU is visible here; give --device cpu")
    folder = ShardFolder(settings.shards)
    teacher = open_teacher(settings.teacher, settings.tokenizer, settings.device, min(8, os.cpu_count() or 1))
    encoder = teacher.encoder
    scale = round(float(encoder.scale), 4)
    embedding = Embedding(folder.merkle_root, teacher.sha256, encoder.embed_dim, scale, encoder.image_size)
    if is_finished(settings.output, embedding):
        console.print(f"{settings.output} already holds exactly this; nothing to do")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    per_shard = max(entry.samples for entry in folder.shards)
    with Progress(*columns, console=console) as bar, ShardWriter(settings.output, per_shard, resume=True) as writer:
        write_text(writer.partial / SETTINGS, json.dumps(asdict(embedding), indent=1))
        task = bar.add_task("embed", total=folder.samples, completed=writer.finished)
        faults = write_embeddings(
            teacher, embedding, settings.shards, writer, settings.batch_size, lambda count: bar.advance(task, count)
        )
        if faults:
            with LedgerWriter(writer.partial / LEDGER, "embed_shards") as ledger:
                for key, reason in faults:
                    ledger.write([{"key": key, "rule": "sample", "value": "", "kept": False, "reason": reason}])
            console.print(f"{len(faults)} samples cannot be read and are left out: {LEDGER} names them")
    teachers = json.loads(next(read_samples(settings.output))[1]["json"])["teachers"]
    console.print(
        f"wrote {ShardFolder(settings.output).samples} samples to {settings.output}; "
        "settings for the recipe's distillation loss:"
    )
    for each in teachers:
        console.print(f"  - {{size: {each['size']}, scale: {each['scale']}}}")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(EmbedSettings, __doc__, args)
    with run_lock(beside(settings.output), settings.output):
        embed_shards(settings, Console())


if __name__ == "__main__":
    run(main)
