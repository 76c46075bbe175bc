"""What a run needs of data: images per second, cores that decode, bandwidth, and bytes and files of storage.

All are products of sizes and rates. Rates of decoding and sizes of images differ between data sets: measure yours with
``python -m leam_mm.planning calibrate``; the defaults are assumptions and are printed as such.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGE_BYTES = 60_000  # assumed: a stored JPEG of about 256 to 384 pixels
DECODE_RATE = 200.0  # assumed: JPEGs decoded, cropped and resized per second and core
SHARD_SAMPLES = 10_000  # assumed: samples per tar
CAPTION_BYTES = 600  # assumed: JSON record of a sample
LATENT_BYTES_PER_VALUE = 2  # latents and caption states are stored in half precision
TAR_BLOCK = 512  # bytes: a header for each member, and padding to a whole block


@dataclass(frozen=True)
class DataNeeds:
    """What a run reads and stores.

    Args:
        samples_per_second: Samples that the loaders of all nodes must deliver.
        cores: Cores of all nodes that must decode; 0 for latents.
        cores_per_node: Of these in one node.
        read_bytes_per_second: Bandwidth of reading, over all nodes.
        sample_bytes: Stored size of a sample.
        dataset_bytes: Stored size of the data set.
        dataset_files: Files of the data set: two a shard, and its manifest.
        checkpoint_bytes: Size of one checkpoint.
        checkpoints_bytes: Size of all checkpoints that are kept, and one that is being written.
    """

    samples_per_second: float
    cores: float
    cores_per_node: float
    read_bytes_per_second: float
    sample_bytes: float
    dataset_bytes: float
    dataset_files: int
    checkpoint_bytes: float
    checkpoints_bytes: float

    def report(self) -> list[str]:
        """Return lines for a plan."""
        decoding = "no decoding"
        if self.cores:
            decoding = f"{self.cores:,.1f} cores to decode them, {self.cores_per_node:,.1f} a node"
        return [
            f"data (an estimate): {self.samples_per_second:,.0f} samples/s, {decoding}; "
            f"{self.read_bytes_per_second / 1e9:,.2f} GB/s of reading",
            f"  data set: {self.dataset_bytes / 1e12:,.2f} TB in {self.dataset_files:,} files of "
            f"{self.sample_bytes / 1000:,.1f} kB a sample",
            f"  checkpoint: {self.checkpoint_bytes / 1e9:,.1f} GB; with those that are kept: "
            f"{self.checkpoints_bytes / 1e9:,.1f} GB",
        ]


def tar_member(size: float) -> float:
    """Return the bytes that a member of this size takes in a tar: header, and data in blocks of 512 bytes."""
    return TAR_BLOCK + TAR_BLOCK * -(-size // TAR_BLOCK)


def image_sample_bytes(image: float = IMAGE_BYTES) -> float:
    """Return the stored size of an image with its record."""
    return tar_member(image) + tar_member(CAPTION_BYTES)


def latent_sample_bytes(channels: int, side: int, caption: int, width: int, image: float = 0.0) -> float:
    """Return the stored size of a latent with caption states.

    Args:
        channels: C of the latent.
        side: h = w of the latent.
        caption: Tokens of the caption whose states are stored.
        width: D of the states.
        image: Bytes of the image, if it stays in the shard.
    """
    arrays = [channels * side * side, caption * width]
    return sum(tar_member(LATENT_BYTES_PER_VALUE * values + 128) for values in arrays) + (
        image_sample_bytes(image) if image else tar_member(CAPTION_BYTES)
    )


def data_needs(
    samples: float,
    hours: float,
    nodes: int,
    sample_bytes: float,
    dataset_samples: float,
    checkpoint_bytes: float,
    decode_rate: float | None = DECODE_RATE,
    kept_checkpoints: int = 2,
    shard_samples: int = SHARD_SAMPLES,
) -> DataNeeds:
    """Return what a run needs of data.

    Args:
        samples: Samples seen in the run.
        hours: Hours in which training proceeds; the shortest estimate gives the largest need.
        nodes: Number of nodes.
        sample_bytes: Stored size of a sample.
        dataset_samples: Samples of the data set.
        checkpoint_bytes: Size of one checkpoint.
        decode_rate: Images that a core decodes in a second; None for latents.
        kept_checkpoints: Checkpoints that are kept.
        shard_samples: Samples of a shard.
    """
    rate = samples / (hours * 3600)
    cores = 0.0 if decode_rate is None else rate / decode_rate
    shards = int(-(-dataset_samples // shard_samples))
    return DataNeeds(
        samples_per_second=rate,
        cores=cores,
        cores_per_node=cores / nodes,
        read_bytes_per_second=rate * sample_bytes,
        sample_bytes=sample_bytes,
        dataset_bytes=dataset_samples * sample_bytes,
        dataset_files=2 * shards + 1,
        checkpoint_bytes=checkpoint_bytes,
        checkpoints_bytes=(kept_checkpoints + 1) * checkpoint_bytes,
    )


def recipe_sample_bytes(
    recipe: Mapping[str, Any], caption_tokens: int, image: float = IMAGE_BYTES
) -> tuple[float, bool]:
    """Return the stored size of a sample of a recipe, and whether it is a latent.

    Args:
        recipe: Recipe as read by ``read_recipe``.
        caption_tokens: Tokens of a caption whose states are stored.
        image: Bytes of a stored image.
    """
    arguments = recipe["model"].get("init_args") or {}
    denoiser = (arguments.get("denoiser") or {}).get("init_args") or {}
    if str(recipe["data"]["class_path"]).endswith("LatentsModule") and denoiser:
        side = int(arguments.get("latent_size") or 32)
        return latent_sample_bytes(denoiser["in_channels"], side, caption_tokens, denoiser["context_dim"]), True
    return image_sample_bytes(image), False


def checkpoint_bytes(weights: int, trained: int, averages: int, state_bytes: float) -> float:
    """Return the size of a checkpoint: weights and averages in full precision, and the optimizer's states."""
    return 4 * weights * (1 + averages) + state_bytes * trained
