"""Write the plan of a fine-tuning run: five files with what it takes over from its base, before images are encoded.

    python -m leam_mm.finetune_plan --base runs/quickstart --run runs/finetune

RUN/plan/codec_statistics.json holds the statistics that normalised the base's latents; latents.yaml how captions are
stored; recipe.yaml the process, size and text tower of the base (on top of configs/finetune_generator.yaml); codec.yaml
its codec, whose decoder is trained on the new images (on top of configs/finetune_codec.yaml); evaluate.yaml what is
measured before and after. Text tower and codec must be those that the base was trained with. RUN/tables/split.json
(data_tools/split_folder.py) says how many images there are: without held-out ones, the images trained on are measured,
and the plan says so. If the base's own shards and latents are in its folder, a share of the samples is drawn from them,
so that the base is not forgotten (rehearsal, 1811.11682).
"""

import argparse
import json
import logging
import sys
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leam_mm.captions.frozen_parts import STATISTICS
from leam_mm.checkpoint import EVIDENCE, checkpoint_config, find_checkpoint, load_module, read_checkpoint
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.config_error import innermost
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.encoders.dual_encoder import TextTower
from leam_mm.errors import UserError, run
from leam_mm.evaluators.generation import FEWEST, FEWEST_OF_DISTRIBUTIONS
from leam_mm.files import file_sha256, write_json, write_text
from leam_mm.intervals.intervals import FEWEST as VALUES
from leam_mm.json_text import parse_object
from leam_mm.recorded_classes import MODEL_CLASSES, check_recorded, trust_modules

log = logging.getLogger(__name__)
CLASS = "leam_mm.evaluators"
ENCODING = "encoding.json"  # of a folder that data_tools/encode_latents.py wrote
FEW = 10  # images to train on, below which a generator repeats them
MEASURED = 256  # images that are generated for a distance, at most


@dataclass(frozen=True)
class Split:
    """How many images of the folder are trained on, and how many are held out."""

    train: int
    held_out: int

    @classmethod
    def read(cls, path: Path) -> "Split | None":
        """Return what split_folder.py counted; None without its file, which means enough images on both sides."""
        try:
            content = parse_object(path.read_bytes())
            return cls(int(content["train"]), int(content["held_out"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path} holds no counts ({error!r:.100}): run data_tools/split_folder.py again") from None


def base_settings(base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a base's generator and the record of its frozen parts, after comparing their digests.

    Args:
        base: Run folder of a pipeline, with generator/, clip/ and codec/.
    """
    checkpoint = read_checkpoint(base / "generator")
    model = checkpoint_config(checkpoint)["model"]["init_args"]
    frozen = checkpoint[EVIDENCE].get("frozen", {})
    for name in ("clip", "codec"):
        if not isinstance((model.get("frozen") or {}).get(name), str) or name not in frozen:
            raise UserError(
                f"{base / 'generator'} was not trained with one {name}: write the recipe by hand, "
                "following configs/finetune_generator.yaml"
            )
        if file_sha256(find_checkpoint(base / name)) != frozen[name]["sha256"]:
            raise UserError(f"{base / name} is not the {name} that {base / 'generator'} was trained with: put it back")
    return model, frozen


def checked(value: Any, kind: type, base: Path, part: str) -> Any:
    """Return a part of a base's config, which the recipe of the fine-tuning will name, if all its classes are ours.

    Args:
        value: The part.
        kind: What it must describe.
        base: Run folder that it comes from, for the message.
        part: Name of the part, for the message.
    """
    try:
        check_recorded(value, kind, [*MODEL_CLASSES, "leam_mm.data"])
    except (UserError, ArgumentError) as error:
        raise UserError(f"{base}: the {part} of its config cannot be taken over ({innermost(str(error))})") from None
    return value


def latent_statistics(base: Path, frozen: dict[str, Any]) -> dict[str, Any]:
    """Return the statistics that normalised the base's latents: those of its latents, or else the codec's own."""
    if "latents" in frozen:
        return frozen["latents"]["statistics"]
    module: Any = load_module(base / "codec", "ema_codec")
    return module.codec.statistics()


def training_data(base: Path, own: Path, statistics: dict[str, Any], share: float) -> str | list[dict[str, Any]]:
    """Return the training data: the new latents alone, or mixed with those that the base was trained on.

    Args:
        base: Run folder of its pipeline.
        own: Latents of the new images.
        statistics: Statistics that normalised the base's latents; latents with others are refused.
        share: Share of all samples, in [0, 1), drawn from the base's latents.
    """
    old = base / "latents" / "train"
    if not share:
        return str(own)
    try:
        found = json.loads((old / STATISTICS).read_text())
    except (OSError, ValueError):
        log.warning("%s holds no latents: no training samples of the base are rehearsed", old)
        return str(own)
    if any(found.get(name) != statistics[name] for name in ("mean", "std", "shift", "scale") if name in statistics):
        raise UserError(
            f"{old} is normalised with other statistics than {base / 'generator'} was trained with: give --rehearse 0"
        )
    log.info("%.0f %% of the samples come from %s, so that the base is not forgotten", 100 * share, old)
    return [{"path": str(own), "weight": 1 - share}, {"path": str(old), "weight": share}]


def caption_storage(base: Path, tower: bool, rehearsed: bool) -> dict[str, Any]:
    """Return how data_tools/encode_latents.py stores captions: as the base's latents do, since a batch mixes both.

    Args:
        base: Run folder of its pipeline.
        tower: Whether the base reads captions with a caption tower, which takes texts and no states.
        rehearsed: Whether samples are drawn from the base's latents.
    """
    texts_only = tower
    if rehearsed:
        path = base / "latents" / "train" / ENCODING
        try:
            texts_only = not parse_object(path.read_bytes())["text_sha256"]
        except FileNotFoundError:
            texts_only = False  # a folder written by hand
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} does not say how captions are stored ({error!r:.100}): encode it again") from None
    return {"texts_only": True} if texts_only else {"text_encoders": [f"clip={base / 'clip'}"]}


def recipe(
    base: Path, output: Path, model: dict[str, Any], data: str | list[dict[str, Any]], held_out: bool = True
) -> dict[str, Any]:
    """Return the overlay of the generator recipe.

    Args:
        base: Run folder of its pipeline.
        output: Run folder of the fine-tuning.
        model: Settings of the base's generator.
        data: Training data.
        held_out: Whether any image is held out; without one nothing is validated during training.
    """
    tower: dict[str, Any] = {}
    if model.get("caption_tower") is not None:  # continues with the base's tower, since new words are unknown to it
        text = model["caption_tower"].get("init_args", model["caption_tower"])["text"]
        checked(text, TextTower, base / "generator", "caption_tower")
        tower = {"caption_tower": {"text": text, "weights": str(base / "generator")}}
    return {
        "trainer": {"default_root_dir": str(output / "generator")},
        "data": {
            "init_args": {"train": data, "validation": str(output / "latents" / "held_out") if held_out else None}
        },
        "model": {
            "init_args": {
                "denoiser": {"init_args": {"weights": str(base / "generator")}},
                "process": checked(model["process"], DiffusionProcess, base / "generator", "process"),
                "latent_size": model["latent_size"],
                "frozen": {
                    "clip": str(base / "clip"),
                    "codec": str(output / "codec"),
                    "latents": str(output / "plan"),
                },
                **tower,
            }
        },
    }


def codec_recipe(base: Path, output: Path, share: float, held_out: bool = True) -> dict[str, Any]:
    """Return the overlay of the codec recipe: the base's codec, and the base's images if they are present.

    The encoder is not trained, so that latents keep their meaning for the base's denoiser.

    Args:
        base: Run folder of its pipeline.
        output: Run folder of the fine-tuning.
        share: Share of all samples, in [0, 1), drawn from the base's own images.
        held_out: Whether any image is held out.
    """
    config = checkpoint_config(read_checkpoint(base / "codec"))
    codec = checked(config["model"]["init_args"]["codec"], LatentCodec, base / "codec", "codec")
    image = checked(config["data"]["init_args"]["image"], ImageDecoding, base / "codec", "image")
    old, data = base / "shards" / "train", str(output / "shards" / "train")
    sources = [{"path": data, "weight": 1 - share}, {"path": str(old), "weight": share}]
    rehearsed = share > 0 and (old / "manifest.jsonl").is_file()
    return {
        "trainer": {"default_root_dir": str(output / "codec")},
        "data": {
            "init_args": {
                "train": sources if rehearsed else data,
                "validation": str(output / "shards" / "held_out") if held_out else None,
                "image": image,
            }
        },
        "model": {
            "init_args": {"codec": codec, "weights": str(base / "codec")},
        },
    }


def evaluation(base: Path, output: Path, language: str, held_out: bool = True) -> dict[str, Any]:
    """Return the evaluation before and after: on the new images, and on the base's own task where it can be tested.

    Args:
        base: Run folder of its pipeline.
        output: Run folder of the fine-tuning.
        language: Language of the new captions.
        held_out: Whether any image is held out; else those of the training are measured, and named so.
    """
    features = {"class_path": f"{CLASS}.image_features.EfficientNetLite0"}
    sampling = {"sampling": {"steps": 20, "guidance": 3.0}}

    def distance(name: str, reference: Path, prompts: Path, samples: int) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "reference": str(reference),
            "prompts_from": str(prompts),
            "features": features,
            "name": name,
        }
        settings |= {"samples": samples, "languages": [language], **sampling}
        return {"class_path": f"{CLASS}.generation.Generation", "init_args": settings}

    shards, latents = output / "shards", output / "latents"
    part = "held_out" if held_out else "train"
    measured = [distance("own_pictures", shards / "train", shards / part, MEASURED)]
    scenes, test = base / "scenes" / "scenes.json", base / "shards" / "test"
    settings: dict[str, Any] = {
        "base": str(base / "generator"),
        "held_out": str(shards / part),
        "latents": str(latents / part),
        **sampling,
    }
    if not held_out:
        settings["seen"] = True
    if scenes.is_file():
        settings["old_prompts"] = str(scenes)
        scene_settings: dict[str, Any] = {"scenes": str(scenes.parent), "real_limit": 200, **sampling}
        scene_settings |= {"real_shards": str(test)} if test.is_dir() else {}
        measured.append({"class_path": f"{CLASS}.compositional.Compositional", "init_args": scene_settings})
    elif test.is_dir():
        measured.append(distance("base_pictures", test, test, MEASURED))
    judged: dict[str, Any] = {
        "base": str(base / "generator"),
        "pictures": str(shards / "train"),
        "features": [
            {"class_path": f"{CLASS}.image_features.SmallEfficientNetLite0"},
            {"class_path": f"{CLASS}.image_features.ClipFeatures", "init_args": {"checkpoint": str(base / "clip")}},
        ],
        "language": language,
        **sampling,
    }
    return {
        "generator": str(output / "generator"),
        "output": str(output / "evaluation"),
        "evaluators": [
            {"class_path": f"{CLASS}.recognised_captions.RecognisedCaptions", "init_args": judged},
            {"class_path": f"{CLASS}.before_after.BeforeAfter", "init_args": {**settings, "evaluators": measured}},
        ],
    }


def expectation(split: Split) -> str:
    """Return one line: what a generator learns from so many images, and what is measured."""
    plural = "" if split.train == 1 else "s"
    text = f"{split.train} image{plural} to train on"
    if split.train < FEW:
        text += f", so few that the generator will mostly repeat {'them' if plural else 'it'}"
    text += "; measured: loss and codec error on "
    if split.held_out:
        text += f"{split.held_out} held-out image{'' if split.held_out == 1 else 's'}"
    else:
        text += f"the image{plural} trained on, since none is held out"
    if (split.held_out or split.train) < VALUES:
        text += f" (no interval below {VALUES})"
    half = min(split.train // 2, MEASURED)
    if half < FEWEST:
        text += f"; not measured: distances to the images, which take {2 * FEWEST} to train on"
    elif half < FEWEST_OF_DISTRIBUTIONS:
        text += f"; not measured: Fréchet distance and precision, which take {2 * FEWEST_OF_DISTRIBUTIONS} to train on"
    return text


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a YAML file atomically, its keys in the given order."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def write_plan(base: Path, output: Path, language: str, share: float) -> Path:
    """Write the files of a plan, and return their folder.

    Args:
        base: Folder with the base's generator/, clip/ and codec/.
        output: Run folder of the fine-tuning.
        language: Language of the new captions.
        share: Share of samples, in [0, 1), drawn from the base's own.
    """
    split = Split.read(output / "tables" / "split.json")
    model, frozen = base_settings(base)
    held_out = split is None or split.held_out > 0
    plan = output / "plan"
    plan.mkdir(parents=True, exist_ok=True)
    statistics = latent_statistics(base, frozen)
    data = training_data(base, output / "latents" / "train", statistics, share)
    write_json(plan / STATISTICS, statistics)
    storage = caption_storage(base, model.get("caption_tower") is not None, not isinstance(data, str))
    write_yaml(plan / "latents.yaml", storage)
    write_yaml(plan / "recipe.yaml", recipe(base, output, model, data, held_out))
    write_yaml(plan / "codec.yaml", codec_recipe(base, output, share, held_out))
    write_yaml(plan / "evaluate.yaml", evaluation(base, output, language, held_out))
    if split is not None:
        print(expectation(split))
    return plan


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m leam_mm.finetune_plan",
        description="Write RUN/plan: recipes, statistics of the latents and evaluation of a fine-tuning run.",
    )
    parser.add_argument("--base", type=Path, required=True, help="folder with the base's generator/, clip/ and codec/")
    parser.add_argument("--run", type=Path, required=True, help="run folder of the fine-tuning")
    parser.add_argument("--trust", default="", help="modules of your own that the base may name, between commas")
    parser.add_argument("--language", default="en", help="language of the new captions, as two letters (%(default)s)")
    parser.add_argument(
        "--rehearse",
        type=float,
        default=0.25,
        help="share of samples from BASE/{latents,shards}/train, if any (%(default)s)",
    )
    options = parser.parse_args(args)
    trust_modules(options.trust)
    if not 0 <= options.rehearse < 1:
        raise UserError(f"--rehearse is {options.rehearse}: give a share of 0 or more, below 1")
    try:
        plan = write_plan(options.base, options.run, options.language, options.rehearse)
    except (KeyError, TypeError, AttributeError) as error:  # of what the base's checkpoints record
        raise UserError(
            f"the checkpoints of {options.base} do not record what a plan takes over ({error!r:.200}): give the run "
            "folder of a pipeline"
        ) from None
    print(f"wrote {plan}: statistics of the base's latents, latents.yaml, recipe.yaml, codec.yaml and evaluate.yaml")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    run(main)
