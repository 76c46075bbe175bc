"""What a fine-tuning takes over from its base: a plan of four files, made before any picture is encoded.

    python -m leam_mm.finetune_plan --base runs/quickstart --run runs/finetune

RUN/plan/codec_statistics.json holds the numbers that the base's latents were normalised with, recipe.yaml the process,
size and text tower of the base (on top of configs/finetune_generator.yaml), codec.yaml its codec, whose decoder learns
the folder's pictures (on top of configs/finetune_codec.yaml), evaluate.yaml what is measured before and after. Text
tower and codec are compared with what the base was trained with. Where the base's own shards and latents lie beside it,
a share of the samples is drawn from them, so that the base is not forgotten (rehearsal, 1811.11682).
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from leam_mm.captions.frozen_parts import STATISTICS
from leam_mm.checkpoint import EVIDENCE, checkpoint_config, find_checkpoint, load_module, read_checkpoint
from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256
from leam_mm.pipeline import write_json

log = logging.getLogger(__name__)
CLASS = "leam_mm.evaluators"


def base_settings(base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model section of a base's generator, and the record of its frozen parts, once these were found in the base.

    Args:
        base: Folder of a corridor: generator/, clip/ and codec/.
    """
    checkpoint = read_checkpoint(base / "generator")
    model = checkpoint_config(checkpoint)["model"]["init_args"]
    frozen = checkpoint[EVIDENCE].get("frozen", {})
    for name in ("clip", "codec"):
        if not isinstance(model.get(name), str) or name not in frozen:
            raise UserError(
                f"{base / 'generator'} was not trained with one {name}: write the recipe of its fine-tuning by hand, "
                "after configs/finetune_generator.yaml"
            )
        if file_sha256(find_checkpoint(base / name)) != frozen[name]["sha256"]:
            raise UserError(f"{base / name} is not the {name} that {base / 'generator'} was trained with: put it back")
    return model, frozen


def latent_statistics(base: Path, frozen: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the base's latents were normalised with: those of its latents, or else the codec's own."""
    from leam_mm.codec_module import LatentCodecModule

    if "latents" in frozen:
        return frozen["latents"]["statistics"]
    return load_module(base / "codec", LatentCodecModule).codec.statistics()


def training_data(base: Path, own: Path, statistics: dict[str, Any], share: float) -> str | list[dict[str, Any]]:
    """The folder's latents alone, or mixed with those that the base was trained on.

    Args:
        base: Folder of its corridor.
        own: Latents of the folder's pictures.
        statistics: What the base's latents were normalised with; others are not mixed in.
        share: Of all samples, in [0, 1), drawn from the base's latents.
    """
    old = base / "latents" / "train"
    if not share:
        return str(own)
    try:
        found = json.loads((old / STATISTICS).read_text())
    except (OSError, ValueError):
        log.warning("%s holds no latents: nothing of what the base was trained on is rehearsed", old)
        return str(own)
    if any(found.get(name) != statistics[name] for name in ("mean", "std", "shift", "scale") if name in statistics):
        raise UserError(f"{old} is normalised otherwise than {base / 'generator'} was trained: give --rehearse 0")
    log.info("%.0f %% of the samples come from %s, so that the base is not forgotten", 100 * share, old)
    return [{"path": str(own), "weight": 1 - share}, {"path": str(old), "weight": share}]


def recipe(base: Path, place: Path, model: dict[str, Any], data: str | list[dict[str, Any]]) -> dict[str, Any]:
    """The overlay that follows from the base.

    Args:
        base: Folder of its corridor.
        place: Run folder of the fine-tuning.
        model: The base's own settings.
        data: What is trained on.
    """
    tower: dict[str, Any] = {}
    if model.get("caption_tower") is not None:  # goes on as the base's, and stays as it is
        text = model["caption_tower"].get("init_args", model["caption_tower"])["text"]
        tower = {"caption_tower": {"text": text, "weights": str(base / "generator"), "trained": False}}
    return {
        "trainer": {"default_root_dir": str(place / "generator")},
        "data": {"init_args": {"train": data, "validation": str(place / "latents" / "held_out")}},
        "model": {
            "init_args": {
                "denoiser": {"init_args": {"weights": str(base / "generator")}},
                "process": model["process"],
                "latent_size": model["latent_size"],
                "clip": str(base / "clip"),
                "codec": str(place / "codec"),
                "latents": str(place / "plan"),
                **tower,
            }
        },
    }


def codec_recipe(base: Path, place: Path, share: float) -> dict[str, Any]:
    """The overlay for the decoder: the base's codec, and its pictures where they are there.

    The encoder stays as it is, so that the latents of the base keep their meaning, and the base's denoiser its task.

    Args:
        base: Folder of its corridor.
        place: Run folder of the fine-tuning.
        share: Of all samples, in [0, 1), drawn from the base's own pictures.
    """
    config = checkpoint_config(read_checkpoint(base / "codec"))
    old, data = base / "shards" / "train", str(place / "shards" / "train")
    sources = [{"path": data, "weight": 1 - share}, {"path": str(old), "weight": share}]
    rehearsed = share > 0 and (old / "manifest.jsonl").is_file()
    return {
        "trainer": {"default_root_dir": str(place / "codec")},
        "data": {
            "init_args": {
                "train": sources if rehearsed else data,
                "validation": str(place / "shards" / "held_out"),
                "image": config["data"]["init_args"]["image"],
            }
        },
        "model": {
            "init_args": {"codec": config["model"]["init_args"]["codec"], "weights": str(base / "codec")},
        },
    }


def evaluation(base: Path, place: Path, language: str) -> dict[str, Any]:
    """What is measured before and after: the folder's pictures, and what the base could do where it can be tested.

    Args:
        base: Folder of its corridor.
        place: Run folder of the fine-tuning.
        language: Of the folder's captions.
    """
    features = {"class_path": f"{CLASS}.image_features.EfficientNetLite0"}
    sampling = {"steps": 20, "guidance": 3.0}

    def distance(name: str, reference: Path, prompts: Path, samples: int) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "reference": str(reference),
            "prompts_from": str(prompts),
            "features": features,
            "name": name,
        }
        settings |= {"samples": samples, "languages": [language], **sampling}
        return {"class_path": f"{CLASS}.generation.Generation", "init_args": settings}

    shards = place / "shards"
    measured = [distance("own_pictures", shards / "train", shards / "held_out", 256)]
    scenes, test = base / "scenes" / "scenes.json", base / "shards" / "test"
    settings: dict[str, Any] = {
        "base": str(base / "generator"),
        "held_out": str(shards / "held_out"),
        "latents": str(place / "latents" / "held_out"),
        **sampling,
    }
    if scenes.is_file():
        settings["old_prompts"] = str(scenes)
        told: dict[str, Any] = {"scenes": str(scenes.parent), "real_limit": 200, **sampling}
        told |= {"real_shards": str(test)} if test.is_dir() else {}
        measured.append({"class_path": f"{CLASS}.compositional.Compositional", "init_args": told})
    elif test.is_dir():
        measured.append(distance("base_pictures", test, test, 256))
    return {
        "generator": str(place / "generator"),
        "output": str(place / "evaluation"),
        "evaluators": [
            {"class_path": f"{CLASS}.before_after.BeforeAfter", "init_args": {**settings, "evaluators": measured}}
        ],
    }


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, path)


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m leam_mm.finetune_plan",
        description="Write RUN/plan: the recipe, the latents' statistics and the evaluation that follow from a base.",
    )
    parser.add_argument("--base", type=Path, required=True, help="folder with the base's generator/, clip/ and codec/")
    parser.add_argument("--run", type=Path, required=True, help="run folder of the fine-tuning")
    parser.add_argument("--language", default="en", help="of the folder's captions, as two letters (%(default)s)")
    parser.add_argument(
        "--rehearse",
        type=float,
        default=0.25,
        help="share of samples from BASE/{latents,shards}/train, if any (%(default)s)",
    )
    options = parser.parse_args(args)
    if not 0 <= options.rehearse < 1:
        raise UserError(f"--rehearse is {options.rehearse}: give a share of 0 or more, below 1")
    model, frozen = base_settings(options.base)
    plan = options.run / "plan"
    plan.mkdir(parents=True, exist_ok=True)
    statistics = latent_statistics(options.base, frozen)
    data = training_data(options.base, options.run / "latents" / "train", statistics, options.rehearse)
    write_json(plan / STATISTICS, statistics)
    write_yaml(plan / "recipe.yaml", recipe(options.base, options.run, model, data))
    write_yaml(plan / "codec.yaml", codec_recipe(options.base, options.run, options.rehearse))
    write_yaml(plan / "evaluate.yaml", evaluation(options.base, options.run, options.language))
    print(f"wrote {plan}: statistics of the base's latents, recipe.yaml, codec.yaml and evaluate.yaml")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    run(main)
