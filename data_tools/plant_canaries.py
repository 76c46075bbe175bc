"""Write canaries to plant into training data: random images with unique captions, and the list that proves them.

    python data_tools/plant_canaries.py --output canaries --duplication 1 4 16 64 --canaries 64 32 16 8 --size 32
    python data_tools/download_shards.py --folder canaries/planted --output shards/canaries

``OUTPUT/planted`` is a folder of images with captions, as any other source: a canary of duplication 16 is there 16
times, each with a file name of its own. ``OUTPUT/canaries.json`` and ``OUTPUT/images`` hold every canary once, and
held-out ones that are never planted; they are the reference of the audit (leam_mm.audits.memorization). Keep them
private until the audit is done, and keep them out of the training data.

Train on the canaries together with the other data: give both folders as a mixture whose weights are their numbers of
samples. A rule against near duplicates (vet_shards.py) removes the copies: plant after it to measure the training, or
before it to measure the whole pipeline.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data_tools.corpora.canary_corpus import draw_canaries
from leam_mm.command_line import NonNegativeInt, PositiveInt, Range, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import atomic_folder, bytes_sha256, write_json
from leam_mm.run_lock import beside, run_lock

RECORD = "canaries.json"
FEWEST_HELD_OUT = 16  # for a rank with some resolution
RIGHTS = {
    "licence": "CC0-1.0",
    "legal_basis": "synthetic",
    "attribution": "drawn by leam_mm data_tools/plant_canaries.py",
}


@dataclass
class Settings:
    """Settings of the program.

    Args:
        output: Folder to write; it must not exist yet, or hold older canaries of this program.
        duplication: How often each canary of a group is planted.
        canaries: Number of canaries of each group.
        held_out: Number of canaries that are not planted, for reference.
        size: Side of the images in pixels.
        seed: Seed of the draws; whoever knows it knows the canaries.
    """

    output: Path
    duplication: list[PositiveInt] = field(default_factory=lambda: [1, 4, 16, 64])
    canaries: list[PositiveInt] = field(default_factory=lambda: [64, 32, 16, 8])
    held_out: PositiveInt = 256
    size: Annotated[int, Range(least=16, most=1024)] = 32
    seed: NonNegativeInt = 0


def plant(settings: Settings) -> int:
    """Write the whole folder to a temporary one and rename it when it is complete; return the planted samples."""
    output, duplication = settings.output, settings.duplication
    if len(duplication) != len(settings.canaries) or len(set(duplication)) != len(duplication):
        raise UserError(
            f"--duplication {duplication} and --canaries {settings.canaries}: give one number of canaries for each "
            "duplication, and no duplication twice"
        )
    if settings.held_out < FEWEST_HELD_OUT:
        raise UserError(f"--held-out {settings.held_out}: give at least {FEWEST_HELD_OUT}, the reference of the ranks")
    if output.exists() and not (output / RECORD).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} holds something other than canaries: name a new folder")
    groups = [copies for copies, count in zip(duplication, settings.canaries, strict=True) for _ in range(count)]
    groups += [0] * settings.held_out
    with run_lock(beside(output), output), atomic_folder(output) as temporary:
        for name in ("planted", "images"):
            (temporary / name).mkdir()
        entries, rows = [], []
        for number, (copies, canary) in enumerate(zip(groups, draw_canaries(len(groups), settings.seed), strict=True)):
            content = canary.png(settings.size)
            name = f"{number:05d}"
            (temporary / "images" / f"{name}.png").write_bytes(content)
            entry = {"image": f"images/{name}.png", "sha256": bytes_sha256(content)}
            entries.append(entry | {"caption": canary.caption, "duplication": copies})
            for copy in range(copies):
                (temporary / "planted" / f"{name}-{copy:04d}.png").write_bytes(content)
                captions = [{"text": canary.caption, "language": "en", "source": "generated"}]
                row = {"url": f"{name}-{copy:04d}.png", "caption": canary.caption, "captions": json.dumps(captions)}
                rows.append(row | RIGHTS)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (temporary / "planted" / "captions.jsonl").write_text(lines, encoding="utf-8")
        write_json(temporary / RECORD, {"version": 1, "seed": settings.seed, "canaries": entries})
    return len(rows)


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(Settings, __doc__, args)
    samples = plant(settings)
    print(f"wrote {samples} planted samples and {settings.held_out} held-out canaries to {settings.output}")


if __name__ == "__main__":
    run(main)
