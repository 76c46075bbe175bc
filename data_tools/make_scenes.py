"""Draw the built-in synthetic corpus: coloured shapes with captions in all 24 official EU languages.

    python data_tools/make_scenes.py --output scenes --train 10000 --test 1000 --size 32

The corpus is free of others' rights, and nothing is downloaded. Some combinations of colour and shape never occur in
the training images (though each colour and each shape does); each test image shows one of them. The same settings give
the same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from data_tools.corpora.corpus_folder import served_address
from data_tools.corpora.scene_corpus import PAIRS, SPLITS, make_scene, render, write_descriptions
from data_tools.corpora.scene_prompts import captions
from leam_mm.command_line import NonNegativeInt, PositiveInt, Range, Share, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import atomic_folder
from leam_mm.languages import LANGUAGES
from leam_mm.run_lock import beside, run_lock

# People often leave the colour out. Such captions teach what a shape is independently of its colour; without them the
# encoder memorises combinations (tried once with a share of 0.3 and timm's resnet10t: English zero-shot on unseen
# combinations after 60,000 samples 63 %, without such captions 54 %).
COLOURLESS = {"train": 0.25, "test": 0.0}
LICENCE = "CC0-1.0"


@dataclass(frozen=True)
class SceneSettings:
    """Settings of the program.

    Args:
        output: Folder to write; an older corpus of this program in it is replaced.
        train: Number of training scenes.
        test: Number of test scenes.
        size: Side of the images in pixels.
        seed: Seed of everything.
        base_url: Address at which a web server will offer the folder; http or https.
        pairs: Share of pairs among the training scenes; test scenes keep the usual share.
    """

    output: Path
    train: PositiveInt = 10000
    test: PositiveInt = 1000
    size: Annotated[int, Range(least=16, most=1024)] = 32
    seed: NonNegativeInt = 0
    base_url: str = "http://127.0.0.1:8000"
    pairs: Share = PAIRS


def write_split(folder: Path, split: str, samples: int, settings: SceneSettings, pairs: float = PAIRS) -> None:
    """Write the images and the link table of one split into ``folder``."""
    seed, base_url = settings.seed, served_address(settings.base_url).rstrip("/")
    images = folder / "images" / split
    images.mkdir(parents=True)
    rows = []
    for number in track(range(samples), description=f"drawing {split}"):
        scene = make_scene(split, seed, number, pairs)
        name = f"{number:07d}.png"
        (images / name).write_bytes(render(scene, seed, split, number, settings.size))
        generator = np.random.default_rng([seed, SPLITS.index(split), number, 2])
        texts = captions(scene, generator, COLOURLESS[split])
        listed = [
            {"text": text, "language": language, "source": "generated", "machine_translated": False}
            for language, text in texts.items()
        ]
        rows.append(
            {
                "url": f"{base_url}/images/{split}/{name}",
                "caption": texts["en"],
                "captions": json.dumps(listed, ensure_ascii=False),
                "licence": LICENCE,
                "legal_basis": "synthetic",
                "page_url": base_url,
                "attribution": "drawn by leam_mm data_tools/make_scenes.py",
                "metadata": json.dumps(scene.metadata()),
            }
        )
    schema = pa.schema([(name, pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{split}.parquet")


def make_scenes(settings: SceneSettings) -> None:
    """Write the whole corpus to a temporary folder and rename it when it is complete."""
    output = settings.output
    served_address(settings.base_url)  # checked before anything is written
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: name a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / "scenes.json").is_file():
        raise UserError(f"--output {output} holds something other than a scene corpus: name an empty or new folder")
    try:
        with run_lock(beside(output), output), atomic_folder(output) as temporary:
            write_split(temporary, "train", settings.train, settings, settings.pairs)
            write_split(temporary, "test", settings.test, settings)
            write_descriptions(temporary, settings.size, settings.seed)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror or error}; free space or name another --output"
        ) from None


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(SceneSettings, __doc__, args)
    make_scenes(settings)
    print(
        f"wrote {settings.train} training and {settings.test} test scenes, captions in {len(LANGUAGES)} languages, "
        f"classes.json, scenes.json, prompt_set.json and shapes.npz to {settings.output}"
    )


if __name__ == "__main__":
    run(main)
