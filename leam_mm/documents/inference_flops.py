"""Floating-point operations of one use of the released networks, counted from the settings of their runs."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.errors import UserError
from leam_mm.planning import counted_flops as counted
from leam_mm.planning.recipe_file import arguments

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceUse:
    """One use of a network.

    Args:
        kind: ``embed_image``, ``embed_text``, ``denoise`` (one step for one latent) or ``decode``.
        size: H = W in pixels or latent positions, or the number of tokens.
        flops: FLOP of its matrix products and convolutions.
    """

    kind: str
    size: int
    flops: int


def inference_flops(facts: ReleaseFacts) -> list[InferenceUse]:
    """Return the uses of each part, as they were counted when the release was made.

    Args:
        facts: The release. A stage without recorded uses is counted from its settings.
    """
    found: list[InferenceUse] = []
    for stage in facts.stages:
        recorded = stage.inference
        found += stage_uses(stage.kind, stage.recipe) if recorded is None else [InferenceUse(**use) for use in recorded]
    return found


def stage_uses(kind: str, recipe: Mapping[str, Any]) -> list[InferenceUse]:
    """Count the uses of the network of a run; empty where its settings are not recorded or cannot be counted.

    Args:
        kind: clip, generator or codec.
        recipe: The resolved settings of a run of one's own: they name the files and classes that are opened.
    """
    if not recipe:
        return []
    try:
        return list(_uses(json.dumps(recipe, sort_keys=True)))
    except (UserError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # of others' settings
        log.warning("the inference of %s is not counted: %s", kind, str(error).splitlines()[0:1])
    return []


@lru_cache(maxsize=16)
def _uses(recipe: str) -> tuple[InferenceUse, ...]:
    """Return the uses of the network of one recipe (JSON), built without memory for its weights."""
    return tuple(_counted(json.loads(recipe)))


def _counted(recipe: Mapping[str, Any]) -> Iterator[InferenceUse]:
    model = dict(recipe["model"])
    kind = str(model["class_path"]).rpartition(".")[2]
    if kind == "LatentDiffusionModule":  # techniques of training, such as masking, change what a step computes
        model["init_args"] = {**model["init_args"], "techniques": []}
    module = counted.meta_module(model)
    if kind == "ContrastiveModule":
        encoder = module.encoder
        yield InferenceUse("embed_image", encoder.image_size, counted.count_image(encoder, encoder.image_size, 0.0))
        yield InferenceUse("embed_text", encoder.context_length, counted.count_text(encoder, encoder.context_length))
    elif kind == "LatentDiffusionModule":
        side = module.latent_size
        flops = counted.count_denoiser(module, (side, side), counted.DEFAULT_CAPTION)
        yield InferenceUse("denoise", side, flops)
    elif kind == "LatentCodecModule":
        size = int(arguments(arguments(recipe["data"]).get("image"))["image_size"])
        yield InferenceUse("decode", size, counted.count_codec(module, size)["decoder"])
