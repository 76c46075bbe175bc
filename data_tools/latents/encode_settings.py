"""Settings of encode_latents: its command line, and the part of it that decides the content of the output."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from leam_mm.command_line import NonNegativeInt, PositiveInt
from leam_mm.data.aspect_buckets import AspectBuckets


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of the program.

    Args:
        shards: Folder of final shards.
        codec: Run or checkpoint of a codec, or diffusers' folder.
        output: Folder to write.
        text_encoders: Text encoders in the order of their states: clip=RUN (a run or checkpoint of a contrastive
            model; --clip RUN is the same) or transformers=FOLDER (--text-encoder FOLDER is the same).
        texts_only: Store captions as texts without states, for a generator that reads them with a caption_tower, or
            with its frozen encoder during training.
        text_length: Most tokens per caption, for transformers' encoders.
        features: Image encoder whose patch tokens are stored: run or checkpoint, open_clip's folder or NAME:TAG,
            folder of transformers.
        feature_size: Side in pixels of the images that it sees; by default that of its training.
        statistics: Latent folder whose statistics are taken; by default they are measured.
        captions_per_sample: Most captions per sample.
        languages: Take captions in these languages only, if a sample has any.
        image_size: Side in pixels; may be repeated for several sizes. By default that of the codec's training.
        buckets: Keep aspect ratios, in shapes of about image-size squared pixels.
        bucket_multiple: Heights and widths of buckets are multiples of it; by default twice the codec's downscale.
        max_ratio: Largest ratio of the longer to the shorter side of a bucket.
        tile: Side in pixels of the codec's tiles, for large images; by default whole images.
        moments: Keep the log-variance of an AutoencoderKL, too.
        seed: Seed of the choice of captions.
        batch_size: Samples at once; changes speed and memory only.
        dtype: Type of the stored latents and caption states.
        device: cpu or cuda.
        processes: Processes that share the work; with cuda, each has a GPU of its own.
        verify: Read everything back, and decode this many latents into images; without a number 64.
        trust: Modules of your own, such as my_lab, whose classes the models may name; several between commas.
    """

    shards: Path
    codec: Path
    output: Path
    text_encoders: list[str] = field(
        default_factory=list, metadata={"nargs": 1, "aliases": {"clip": "clip=", "text-encoder": "transformers="}}
    )
    texts_only: bool = False
    text_length: PositiveInt = 128
    features: str | None = None
    feature_size: int | None = None
    statistics: Path | None = None
    captions_per_sample: PositiveInt = 4
    languages: list[str] | None = None
    image_size: list[int] | None = field(default=None, metadata={"nargs": 1})
    buckets: bool = False
    bucket_multiple: int | None = None
    max_ratio: float = 2.0
    tile: int | None = None
    moments: bool = False
    seed: int = 0
    batch_size: PositiveInt = 256
    dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    device: str = "cpu"
    processes: PositiveInt = 1
    verify: NonNegativeInt = field(default=0, metadata={"const": 64})
    trust: str = ""


@dataclass(frozen=True)
class Encoding:
    """Everything that decides the content of the output: two runs with equal settings write equal bytes.

    Args:
        shards: Merkle root of the input.
        codec_sha256: Digest of the codec's file.
        text_sha256: Digest of each text encoder, in the order of their states; empty stores captions as texts only.
        text_length: Most tokens per caption, for transformers' encoders.
        feature_sha256: Digest of the image encoder whose patch tokens are stored; None stores none.
        feature_size: Side in pixels of the images that it sees.
        image_sizes: H = W in pixels of each resolution; with buckets, the side of the square one.
        buckets: ``multiple`` and ``max_ratio`` of the aspect-ratio buckets, or None.
        moments: Keep the posterior's log-variance, too.
        captions_per_sample: K, most captions of a sample.
        languages: Captions in these only, if a sample has any; None takes all.
        seed: Seed of the choice of captions.
        dtype: Type of the stored latents and caption states.
        statistics_sha256: Digest of the statistics taken from another folder; None measures them.
        tile: Side in pixels of the codec's tiles (LatentCodec.set_tile); None takes whole images.
    """

    shards: str
    codec_sha256: str
    text_sha256: list[str]
    text_length: int
    feature_sha256: str | None
    feature_size: int | None
    image_sizes: list[int]
    buckets: dict[str, float] | None
    moments: bool
    captions_per_sample: int
    languages: list[str] | None
    seed: int
    dtype: str
    statistics_sha256: str | None
    tile: int | None = None

    def aspect_buckets(self) -> AspectBuckets | None:
        """Return the shapes of the buckets, or None if images are cropped to squares."""
        if self.buckets is None:
            return None
        return AspectBuckets(self.image_sizes[0], int(self.buckets["multiple"]), self.buckets["max_ratio"])
