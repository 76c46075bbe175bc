"""Read latent shards back: check digests and order, compare arrays with a new encoding, and decode images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from data_tools.latents.latent_encoder import LatentEncoder
from data_tools.latents.latent_jobs import Part, read_rows
from data_tools.latents.shard_embedding import StoredSample
from data_tools.samples.shard_check import check_folder
from leam_mm.data.array_format import read_array
from leam_mm.data.image_range import signed
from leam_mm.data.latent_members import LATENT
from leam_mm.data.shard_index import ShardFolder

STEP = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24}  # largest relative error of rounding
NOISE = 1e-3  # further difference that other batches and threads may cause in a number around 1
LOSS = 0.5  # dB that storing may cost


@dataclass
class Verification:
    """Result of the verification.

    Args:
        samples: Number of samples read back with their digests.
        decoded: Number of latents decoded into images.
        stored_psnr: Mean PSNR of the decoded images against the encoded ones, in dB.
        direct_psnr: The same for the codec without storing.
        largest: For each array name, the largest difference from a new encoding, relative to the largest value.
        faults: One line each.
    """

    samples: int = 0
    decoded: int = 0
    stored_psnr: float = float("nan")
    direct_psnr: float = float("nan")
    largest: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@torch.no_grad()
def verify(encoder: LatentEncoder, shards: ShardFolder, parts: list[Part], output: Path, count: int) -> Verification:
    """Check every digest, and the content of about ``count`` samples spread evenly over all parts.

    Args:
        encoder: The networks, with the statistics of the output.
        shards: The input.
        parts: Parts of the output.
        output: The output folder.
        count: Number of samples whose content is checked.
    """
    found, stored, direct = Verification(), [], []
    total = sum(len(part.rows) for part in parts)
    for part in parts:
        folder = output / part.folder
        checked, finding = check_folder(folder, decode=False)
        found.samples += finding.samples
        found.faults += finding.faults
        if finding.samples != len(part.rows) or finding.latents != finding.samples:
            found.faults.append(f"{folder} holds {finding.latents} latents, expected {len(part.rows)}")
        if finding.faults:
            continue
        rows = np.unique(np.linspace(0, len(part.rows) - 1, max(1, round(count * len(part.rows) / total)), dtype=int))
        originals = list(read_rows(shards, part.rows[rows]))
        written = list(read_rows(checked, rows))
        for first in range(0, len(rows), 64):
            group = slice(first, first + 64)
            images, psnr = _compare(encoder, originals[group], written[group], part, found)
            stored += psnr[0]
            direct += psnr[1]
            found.decoded += images
    found.stored_psnr, found.direct_psnr = (float(np.mean(values or [np.nan])) for values in (stored, direct))
    if found.stored_psnr < found.direct_psnr - LOSS:
        found.faults.append(
            f"images of stored latents have {found.stored_psnr:.2f} dB, without storing {found.direct_psnr:.2f}: "
            "the statistics do not fit, or --dtype is too narrow"
        )
    return found


def _compare(
    encoder: LatentEncoder, originals: list[StoredSample], written: list[StoredSample], part: Part, found: Verification
) -> tuple[int, tuple[list[float], list[float]]]:
    """Compare samples with a new encoding; return their number, and their PSNRs with and without storing."""
    images, sizes = encoder.decode(originals, part.shape)
    encoded = encoder.encode_images(images, sizes)
    step = STEP[encoder.encoding.dtype]
    for (key, _), (other, members), expected in zip(
        originals, written, encoder.write_members(originals, encoded), strict=True
    ):
        if key != other:
            found.faults.append(f"{part.folder or 'the folder'} holds {other} instead of {key}")
        if members.keys() != expected.keys() or members["json"] != expected["json"]:
            found.faults.append(f"sample {key}: its json or its members are not those of these settings")
            continue
        for name in sorted(members.keys() - {"json"}):
            now, then = (read_array(each, name).astype(np.float32) for each in (expected, members))
            if now.shape != then.shape:
                found.faults.append(f"sample {key}: {name} is {then.shape}, should be {now.shape}")
                continue
            size = max(1.0, float(np.abs(now).max(initial=0)))
            gap = float(np.abs(now - then).max(initial=0)) / size
            found.largest[name] = max(found.largest.get(name, 0.0), gap)
            if gap > 2 * max(step, STEP["float16"] if name == "image_feature.npy" else 0) + NOISE:
                found.faults.append(f"sample {key}: {name} differs by {gap:.3g} from a new encoding")
    latent = np.stack([read_array(members, LATENT).astype(np.float32) for _, members in written])
    image = signed(images.to(encoder.device))
    stored = encoder.codec.decode(torch.from_numpy(latent).to(encoder.device))
    direct = encoder.codec.decode_raw(torch.from_numpy(encoded["raw"]).to(encoder.device)).clamp(-1, 1)
    return len(latent), (_psnr(stored, image), _psnr(direct, image))


def _psnr(image: torch.Tensor, original: torch.Tensor) -> list[float]:
    """Return the PSNR of images (B, 3, H, W) in [-1, 1], in dB, at most 100."""
    error = (image - original).double().square().flatten(1).mean(1).clamp(min=4e-10)
    return (10 * torch.log10(4 / error)).tolist()
