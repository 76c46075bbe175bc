"""Trained codecs from disk: a folder that diffusers saved, or a run of this project."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL

from leam_mm.checkpoint import find_checkpoint, load_part
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.released_files import compare_released_files, is_variant, released_part

MAX_CONFIG = 1 << 20  # bytes


class PretrainedCodec(LatentCodec):
    """Codec saved by diffusers, from a local folder with config.json and safetensors; nothing is downloaded.

    Args:
        path: The folder.
    """

    def __init__(self, path: str) -> None:
        """Load the weights; see the class for the arguments."""
        config = Path(path) / "config.json"
        kinds = {"AutoencoderKL": AutoencoderKL, "AutoencoderDC": AutoencoderDC}
        try:
            if config.stat().st_size > MAX_CONFIG:
                raise ValueError(f"it is larger than {MAX_CONFIG} bytes")
            kind = str(json.loads(config.read_text(encoding="utf-8")).get("_class_name"))
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{config} cannot be read ({error!r}): give the folder of an autoencoder saved by diffusers"
            ) from None
        if kind not in kinds:
            raise UserError(f"{config} describes {kind!r}: this codec takes {' or '.join(kinds)}")
        compare_released_files(Path(path))
        try:
            loaded, loading = kinds[kind].from_pretrained(
                path, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            gaps = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
            if gaps:  # diffusers fills them with random weights
                raise ValueError(f"{len(gaps)} weights are missing or of another shape, first {gaps[0]}")
            if not all(bool(torch.isfinite(value).all()) for value in loaded.state_dict().values()):
                raise ValueError("some weights are NaN or infinite")
            loaded.register_to_config(_name_or_path="")  # a release must not reveal a path of this machine
            super().__init__(loaded)
        except Exception as error:  # diffusers, safetensors and torch raise many kinds for files that do not fit
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{path} holds no loadable safetensors ({reason}): copy it again") from None


def load_codec(path: Path | str) -> LatentCodec:
    """Load a trained codec for use.

    Args:
        path: Run folder or checkpoint of a LatentCodecModule, whose averaged codec is taken; a folder of diffusers with
            an autoencoder or a pipeline; or a release with a generator.

    Returns:
        The codec in eval mode on the CPU, with a ``checkpoint_evidence`` dict (path, sha256, evidence of the run).
    """
    folder = codec_folder(path)
    if not _is_diffusers_folder(folder):
        return load_part(folder, "ema_codec").eval()
    codec: LatentCodec = PretrainedCodec(str(folder))
    evidence: Any = {"path": str(path), "sha256": file_sha256(codec_file(path))}
    setattr(codec, "checkpoint_evidence", evidence)  # noqa: B010 (an attribute torch's Module does not declare)
    return codec.eval()


def codec_folder(path: Path | str) -> Path:
    """Return the folder of the autoencoder in a release or a pipeline of diffusers; other paths are unchanged."""
    folder = released_part(path, "codec")
    return folder / "vae" if (folder / "model_index.json").is_file() else folder


def codec_file(path: Path | str) -> Path:
    """Return the file whose digest identifies a codec: a run's checkpoint, or the weights in a folder of diffusers."""
    folder = codec_folder(path)
    if not _is_diffusers_folder(folder):
        return find_checkpoint(folder)
    weights = sorted(file for file in folder.glob("*.safetensors") if not is_variant(file))
    if len(weights) != 1:
        raise UserError(f"{folder} holds {len(weights)} safetensors files: give a folder with one autoencoder")
    return weights[0]


def _is_diffusers_folder(path: Path | str) -> bool:
    return (Path(path) / "config.json").is_file()
