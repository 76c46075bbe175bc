"""Which weights a release holds: the average of each part, and further precisions with their measured differences."""

import re

from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.words import part_name, scientific, word
from leam_mm.report.report_number import figures

# What was compared, in English and German; the difference is that from float32.
MEASURES = {
    "image_embedding_largest_difference": (
        "embeddings of images, largest difference of an entry",
        "Einbettungen von Bildern, größter Unterschied eines Eintrags",
    ),
    "image_embedding_smallest_cosine": (
        "embeddings of images, smallest cosine",
        "Einbettungen von Bildern, kleinster Kosinus",
    ),
    "caption_embedding_largest_difference": (
        "embeddings of captions, largest difference of an entry",
        "Einbettungen von Texten, größter Unterschied eines Eintrags",
    ),
    "caption_embedding_smallest_cosine": (
        "embeddings of captions, smallest cosine",
        "Einbettungen von Texten, kleinster Kosinus",
    ),
    "image_largest_difference": (
        "decoded image, largest difference of a pixel in [0, 1]",
        "dekodiertes Bild, größter Unterschied eines Pixels in [0, 1]",
    ),
    "prediction_relative_difference": (
        "prediction of the generator, relative difference",
        "Vorhersage des Generators, relativer Unterschied",
    ),
    "encoder_error": ("the encoder cannot compute in it", "der Encoder rechnet nicht darin"),
    "generator_error": ("the generator cannot compute in it", "der Generator rechnet nicht darin"),
}
GERMAN_WEIGHTS = (
    (r"average with the power-function profile of width", "Mittel mit Potenzprofil der Breite"),
    (r"from (\d+) snapshots", r"aus \1 Zwischenständen"),
    (r"exponential average with decay (\S+) per step", r"exponentielles Mittel mit Faktor \1 je Schritt"),
    (r"last weights", "letzte Gewichte"),
    (r"the run kept no average", "der Lauf hat kein Mittel"),
    (r"the average of the run is not released", "das Mittel des Laufs wird nicht veröffentlicht"),
)


def weight_rows(facts: ReleaseFacts, language: str) -> list[list[str]]:
    """Return part and released weights of each part that states them."""
    return [
        [part_name(stage.kind, language), _in_language(stage.weights, language)]
        for stage in facts.stages if stage.weights
    ]  # fmt: skip


def variant_rows(facts: ReleaseFacts, language: str) -> list[list[str]]:
    """Return precision, what was compared with float32, and the difference, of each further precision."""
    rows = []
    for precision, found in facts.variants.items():
        for name, value in found.items():
            measure = MEASURES[name][language == "de"] if name in MEASURES else name.replace("_", " ")
            rows.append([precision, measure, _shown(name, value, language)])
        if not found:
            rows.append([precision, word("not measured", language), ""])
    return rows


def _shown(name: str, value: float | str, language: str) -> str:
    if isinstance(value, str):
        return value
    return figures(f"{value:.6f}", language) if name.endswith("_cosine") else scientific(value, language)


def _in_language(text: str, language: str) -> str:
    if language == "de":
        for pattern, german in GERMAN_WEIGHTS:
            text = re.sub(pattern, german, text)
        return re.sub(r"\d+\.\d+", lambda number: figures(number[0], language), text)
    return text
