"""Classify images by labels in words, without training (zero-shot).

    python -m leam_mm.classify --encoder runs/quickstart/clip --images photos --labels labels.txt --output labels.csv
    python -m leam_mm.classify --encoder runs/quickstart/clip --images shards --labels de --classes classes.json
        --output labels.csv --html labels.html

Labels are the lines of a text file, in any language, or the class names of a language in a class file of zero-shot
evaluation. The csv has the best labels of each image. A probability is the softmax of the encoder's scale times the
cosines, over these labels alone: it says which label fits best, not how often that is right, and no label may fit.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.errors import run
from leam_mm.recorded_classes import trust_modules

SHOWN = 24  # images of a label on the page


@dataclass(frozen=True)
class ClassifySettings:
    """Settings of the program.

    Args:
        encoder: Run, checkpoint, release, folder of open_clip, or its NAME:TAG.
        images: Folder of images or of shards.
        labels: Text file with one label a line, or the code of a language of --classes.
        output: Table (csv) to write.
        classes: Class file with names in several languages, as of zero-shot evaluation.
        template: Text with {} in place of the label, such as "ein Bild von {}"; may be repeated, and is averaged.
        top: Labels of each image.
        html: Page to write, with up to 24 images of each label.
        batch_size: Images at a time; it changes memory and speed.
        device: cpu or cuda.
        trust: Modules of your own, such as my_lab, whose classes the checkpoint may name; several between commas.
    """

    encoder: str
    images: Path
    labels: str
    output: Path
    classes: Path | None = None
    template: list[str] = field(default_factory=list)
    top: PositiveInt = 3
    html: Path | None = None
    batch_size: PositiveInt = 64
    device: str = "cpu"
    trust: str = ""


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(ClassifySettings, __doc__, args, program="python -m leam_mm.classify")
    from leam_mm.inference.classification import classify_items, read_labels, write_table
    from leam_mm.inference.embedded_items import open_images
    from leam_mm.inference.embedder import Embedder
    from leam_mm.inference.result_page import Result, write_results_page

    trust_modules(settings.trust)
    labels = read_labels(settings.labels, settings.classes, settings.template)
    items = open_images(settings.images)
    embedder = Embedder.open(settings.encoder, settings.device)
    top, threads = min(settings.top, len(labels.names)), min(8, os.cpu_count() or 1)
    classified = classify_items(items, embedder, labels, top, settings.batch_size, threads)
    console = Console(stderr=True)
    found = list(track(classified, "classify", len(items), console=console, transient=True))
    write_table(settings.output, found, top)
    sound = [one for one in found if not one.fault]
    counts = Counter(one.labels[0] for one in sound)
    for label, count in counts.most_common(20):
        print(f"{count:8}  {label}")
    if len(counts) > 20:
        print(f"          and {len(counts) - 20} more labels")
    unread = f"; {len(found) - len(sound)} could not be read, see its column fault" if len(sound) < len(found) else ""
    print(f"{settings.output}: {len(sound)} images by {len(labels.names)} labels{unread}")
    if settings.html is not None:
        groups = []
        for label, count in counts.most_common():
            own = sorted((one for one in sound if one.labels[0] == label), key=lambda one: -one.probabilities[0])
            results = [Result(one.key, f"{one.probabilities[0]:.3f}") for one in own[:SHOWN]]
            groups.append((f"{label}: {count} images", results))
        note = "Softmax over these labels alone: which fits best, not how often that is right."
        write_results_page(settings.html, f"Labels of {settings.images.name}", groups, settings.images, note)
        print(f"wrote {settings.html}")
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
