"""What time_to_accuracy trains on and measures: emoji drawings, or emoji and stamps measured on other stamps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accuracy_clock import Measure

from leam_mm.evaluators.retrieval import EQUAL, Retrieval
from leam_mm.evaluators.zero_shot import ZeroShot

# Languages in which nearly every stamp has a description; drawings of words, which choose the rates, have nine.
STAMP_LANGUAGES = [
    "bg",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "fi",
    "fr",
    "ga",
    "hr",
    "hu",
    "it",
    "lv",
    "nl",
    "pl",
    "pt",
    "ro",
    "sk",
    "sl",
    "sv",
]
WORD_LANGUAGES = ["bg", "de", "el", "en", "es", "fr", "it", "pl", "pt"]
RECALL = f"retrieval{EQUAL}/image_to_text/r1/"
NEAR_RECALL = f"retrieval{EQUAL}/image_to_text/r5/"


@dataclass(frozen=True)
class Corpus:
    """A corpus that a pipeline wrote.

    Args:
        name: Of its pipeline.
        folder: What the pipeline wrote.
        recipe: Our recipe, as read from YAML, with paths of this folder.
        test: The accuracy.
        validation: What chooses the learning rates; its images are neither trained on nor in the test.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    test: Measure
    validation: Measure


def open_corpus(name: str, folder: Path, recipe: Path) -> Corpus:
    """Return the corpus ``emoji`` or ``pictures`` in a folder that its pipeline wrote."""
    folder = folder.resolve()
    made = yaml.safe_load(recipe.read_text().replace(f"runs/{name}", str(folder)))
    if name == "emoji":
        test = Measure(ZeroShot(folder / "shards/test", folder / "drawings/classes.json", ["en"]), "zero_shot/top1/en")
        held_out = Retrieval(folder / "shards/unseen", made["data"]["init_args"]["captions"]["languages"])
    else:
        test = Measure(Retrieval(folder / "shards/test", STAMP_LANGUAGES), f"{RECALL}mean")
        held_out = Retrieval(folder / "shards/validation", WORD_LANGUAGES)
    return Corpus(name, folder, made, test, Measure(held_out, f"{NEAR_RECALL}mean"))
