"""Weights of a release in 16 bits, beside those in float32, under the names that each library looks for.

CLIPModel.from_pretrained(FOLDER, variant="fp16", dtype=torch.float16)
DiffusionPipeline.from_pretrained(FOLDER, variant="fp16", torch_dtype=torch.float16)

open_clip knows one name for weights only: it rounds those in float32 itself, with precision="fp16" or "bf16".
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file, save_file
from torch import Tensor

from leam_mm.codecs.float16_range import fit_float16
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.json_text import parse_object
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.released_files import is_variant

log = logging.getLogger(__name__)
HalfPrecision = Literal["bfloat16", "float16"]
VARIANTS: dict[HalfPrecision, tuple[str, torch.dtype]] = {
    "bfloat16": ("bf16", torch.bfloat16),
    "float16": ("fp16", torch.float16),
}
ENDING, INDEX = ".safetensors", ".safetensors.index.json"
SHARD = re.compile(r"(?P<name>.+?)(?P<number>-\d+-of-\d+)?\.safetensors")
WITH_VARIANTS = ("model", "diffusion_pytorch_model")  # names of weights of transformers and diffusers
PROBE_IMAGES = 8


def write_variants(folder: Path, variants: Sequence[HalfPrecision]) -> None:
    """Write the weights of transformers and diffusers in further precisions, beside those in float32.

    Args:
        folder: The release folder, or a folder of one model.
        variants: Precisions to write.

    Raises:
        UserError: A weight is too large for a precision.
    """
    for file in sorted(weight_files(folder)):
        for variant in variants:
            suffix, dtype = VARIANTS[variant]
            own = load_file(file) | (in_range(file) if variant == "float16" else {})
            weights = {name: rounded(value, dtype, f"{file.name}: {name}") for name, value in own.items()}
            new = file.with_name(variant_name(file.name, suffix))
            save_file(weights, new, metadata={"format": "pt"})
    for index in sorted(folder.rglob(f"*{INDEX}")):
        for variant in variants:
            write_index(index, VARIANTS[variant][0])


def in_range(file: Path) -> dict[str, Tensor]:
    """Return the weights of a file that float16 needs in another scale, see ``codecs/float16_range.py``.

    Args:
        file: Weights in float32 beside their config.json.
    """
    config = file.with_name("config.json")
    stated = parse_object(config.read_bytes()) if config.is_file() else {}
    if stated.get("_class_name") != "AutoencoderDC":
        return {}
    autoencoder: Any = AutoencoderDC.from_pretrained(file.parent, local_files_only=True)
    factors = fit_float16(autoencoder.eval(), float(stated["scaling_factor"]))
    for name, (first, second) in factors.items():
        log.info("float16: convolutions of %s are divided by %d and %d, which its norm removes", name, first, second)
    changed = tuple(f"{name}.conv" for name in factors)
    names = load_file(file).keys()
    return {key: value for key, value in autoencoder.state_dict().items() if key in names and key.startswith(changed)}


def weight_files(folder: Path) -> Iterator[Path]:
    """Yield the files of weights in float32 that have variants."""
    for file in folder.rglob(f"*{ENDING}"):
        found = SHARD.fullmatch(file.name)
        if found is not None and found["name"] in WITH_VARIANTS and not is_variant(file):
            yield file


def variant_name(name: str, suffix: str) -> str:
    """Return the name of a file of weights in another precision: ``model.fp16-00001-of-00002.safetensors``."""
    found = SHARD.fullmatch(name)
    assert found is not None
    return f"{found['name']}.{suffix}{found['number'] or ''}{ENDING}"


def write_index(index: Path, suffix: str) -> None:
    """Write the index of the shards of another precision beside that of float32."""
    content = parse_object(index.read_bytes())
    names = {weight: variant_name(str(file), suffix) for weight, file in content["weight_map"].items()}
    total = sum(file.stat().st_size for file in {index.with_name(name) for name in names.values()})
    new = index.name.replace(INDEX, f"{ENDING}.index.{suffix}.json")
    write_json(index.with_name(new), {"metadata": {"total_size": total}, "weight_map": names}, indent=2)


def rounded(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor in another precision; integers stay as they are.

    Raises:
        UserError: A finite value becomes infinite.
    """
    if not value.is_floating_point():
        return value
    new = value.to(dtype)
    if not torch.isfinite(new).all():
        largest = value.abs().max().item()
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"{name} holds {largest:.4g}, more than {kind} can ({torch.finfo(dtype).max:.4g}): leave {kind} out of "
            "--variants, or give bfloat16"
        )
    return new


def require_finite(values: Tensor, name: str) -> None:
    """Raise ArithmeticError if intermediate results became too large for the precision of a computation."""
    if not torch.isfinite(values).all():
        raise ArithmeticError(f"{name} are not finite in this precision: use bfloat16 or float32")


def embedding_differences(
    module: ContrastiveModule, variants: Sequence[HalfPrecision]
) -> Mapping[str, dict[str, float | str]]:
    """Return how far embeddings in 16 bits are from those in float32, both computed on the CPU.

    Args:
        module: The trained module.
        variants: Precisions to compare.

    Returns:
        For each precision the largest absolute difference of an entry, and the smallest cosine of an embedding, of
        images and of captions; or the ``encoder_error`` where an operation has no implementation in it or overflows.
    """
    generator = torch.Generator().manual_seed(0)
    encoder = module.ema_encoder()
    size = encoder.image_size
    noise = torch.randint(0, 256, (PROBE_IMAGES, 3, size, size), generator=generator, dtype=torch.uint8)
    text = module.tokenizer.encode(list(LANGUAGE_NAMES.values()))[0]
    with torch.no_grad():
        pixels = encoder.normalise(noise)
        plain: Any = copy.deepcopy(encoder.plain_clip()).to("cpu").eval()
        exact = {"image": plain.encode_image(pixels, True), "caption": plain.encode_text(text, True)}
        differences: dict[str, dict[str, float | str]] = {}
        for variant in variants:
            dtype = VARIANTS[variant][1]
            half = copy.deepcopy(plain).to(dtype)
            found: dict[str, float | str] = {}
            try:
                new = {"image": half.encode_image(pixels.to(dtype), True), "caption": half.encode_text(text, True)}
                for kind, embedding in new.items():
                    require_finite(embedding, f"embeddings of {kind}s")
                    found[f"{kind}_embedding_largest_difference"] = (embedding - exact[kind]).abs().max().item()
                    cosines = torch.cosine_similarity(embedding.float(), exact[kind])
                    found[f"{kind}_embedding_smallest_cosine"] = cosines.min().item()
            except (RuntimeError, ArithmeticError) as error:  # some operations have no implementation in 16 bits
                found["encoder_error"] = str(error).splitlines()[0][:200]
                log.warning("the encoder in %s: %s", variant, found["encoder_error"])
            differences[variant] = found
    return differences
