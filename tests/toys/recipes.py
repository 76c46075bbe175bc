"""Complete recipes and model sections small enough for two CPU cores, and checkpoints of them."""

from pathlib import Path
from typing import Any

import torch
import yaml

from leam_mm.checkpoint import EVIDENCE, build_module
from toys.shards import toy_vocabulary

ROOT = Path(__file__).resolve().parents[2]


def clip_recipe(run: Path, shards: Path, tokenizer: Path, max_samples: int = 64, workers: int = 0) -> dict:
    """A complete recipe for a toy CLIP."""
    return {
        "seed_everything": 1,
        "max_samples": max_samples,
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(run), "name": "logs", "version": "", "flush_logs_every_n_steps": 1},
            },
        },
        "checkpoint": {"every_n_train_steps": 2},
        "data": {
            "class_path": "leam_mm.data.pairs_module.PairsModule",
            "init_args": {
                "train": str(shards),
                "image": {"image_size": 16, "crop_scale": [0.7, 1.0]},
                "batch_size": 8,
                "captions": {"tokenizer": str(tokenizer), "context_length": 12},
                "loading": {"workers": workers},
                "seed": 5,
            },
        },
        "model": {
            "class_path": "leam_mm.contrastive_module.ContrastiveModule",
            "init_args": {
                "encoder": {
                    "embed_dim": 16,
                    "vision": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
                    "text": {
                        "context_length": 12,
                        "vocab_size": toy_vocabulary(tokenizer),
                        "width": 32,
                        "heads": 2,
                        "layers": 1,
                    },
                },
                "loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"},
                "tokenizer": str(tokenizer),
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "schedule": {"warmup_steps": 2},
                "ema_decay": 0.9,
            },
        },
        "ckpt_path": "last",
    }


def stable_recipe(run: Path, shards: Path, tokenizer: Path, **changes: Any) -> dict:
    """A toy CLIP whose steps do not amplify rounding, for comparisons of runs on different numbers of ranks."""
    recipe = clip_recipe(run, shards, tokenizer, **changes)
    # With a tiny eps Adam divides rounding errors by themselves where a gradient is zero in theory (biases of keys).
    recipe["model"]["init_args"]["optimizer"]["init_args"]["eps"] = 1e-4
    return recipe


def codec_section() -> dict:
    """A small KL codec with its optimizer."""
    codec = {"latent_channels": 4, "widths": [8, 8, 8], "layers": 1, "norm_groups": 4}
    return {
        "class_path": "leam_mm.codec_module.LatentCodecModule",
        "init_args": {
            "codec": {"class_path": "leam_mm.codecs.latent_codec.KLCodec", "init_args": codec},
            "losses": {"kl_weight": 0.001},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        },
    }


def generator_section(clip: Path, codec: Path) -> dict:
    """A small generator on the frozen parts of two runs."""
    denoiser = {"in_channels": 4, "context_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 1}
    return {
        "class_path": "leam_mm.diffusion_module.LatentDiffusionModule",
        "init_args": {
            "denoiser": {"class_path": "leam_mm.denoisers.denoiser.PRXDenoiser", "init_args": denoiser},
            "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow"},
            "latent_size": 4,
            "frozen": {"clip": str(clip), "codec": str(codec)},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "eps": 1e-4}},
            "schedule": {"warmup_steps": 0},
            "caption_dropout": 0.3,
            "ema": 0.9,
        },
    }


def buckets_recipe(run: Path, latents: Path, tokenizer: Path, workers: int = 0, accumulate: int = 1) -> dict:
    """A complete recipe for a toy generator on latents in buckets of three shapes."""
    recipe = clip_recipe(run, latents, tokenizer, max_samples=96)
    recipe["trainer"] |= {"accumulate_grad_batches": accumulate, "val_check_interval": 2 * accumulate}
    arguments = {"train": str(latents), "validation": str(latents), "batch_size": 8, "seed": 5}
    arguments["loading"] = {"workers": workers}
    recipe["data"] = {"class_path": "leam_mm.data.latents_module.LatentsModule", "init_args": arguments}
    sizes = {"in_channels": 4, "context_dim": 6, "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 1}
    denoiser = {"class_path": "leam_mm.denoisers.denoiser.PRXDenoiser", "init_args": {**sizes, "size_conditioning": 16}}
    recipe["model"] = {
        "class_path": "leam_mm.diffusion_module.LatentDiffusionModule",
        "init_args": {
            "denoiser": denoiser,
            "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow"},
            "latent_size": 2,
            "caption_dropout": 0.0,
            "ema": 0.9,
            "schedule": {"warmup_steps": 2},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        },
    }
    return recipe


def sized_codec_section(kind: str) -> dict[str, Any]:
    """A small codec of one of our classes, without optimizer."""
    sizes = {
        "DCCodec": {"latent_channels": 4, "widths": [8, 8, 16], "layers": [0, 1, 1]},
        "KLCodec": {"latent_channels": 3, "widths": [8, 16], "layers": 1, "norm_groups": 4},
    }
    codec = {"class_path": f"leam_mm.codecs.latent_codec.{kind}", "init_args": sizes[kind]}
    return {"class_path": "leam_mm.codec_module.LatentCodecModule", "init_args": {"codec": codec}}


CODEC_SECTION = {
    "class_path": "leam_mm.codec_module.LatentCodecModule",
    "init_args": {
        "codec": {
            "class_path": "leam_mm.codecs.latent_codec.DCCodec",
            "init_args": {"latent_channels": 4, "widths": [8, 8, 16], "layers": [0, 1, 1]},
        }
    },
}


def save_checkpoint(path: Path, model: dict[str, Any], size: int = 16) -> Path:
    """A checkpoint of a module with random weights, with the parts of its config that rebuild it."""
    torch.manual_seed(0)
    data = {"init_args": {"image": {"image_size": size}}}
    config = yaml.safe_dump({"model": model, "data": data})
    evidence = {"config": config, "model_class": model["class_path"]}
    torch.save({EVIDENCE: evidence, "state_dict": build_module(model).state_dict()}, path)
    return path
