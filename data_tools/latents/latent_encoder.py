"""The frozen networks that turn a picture with captions into a latent sample, and the settings they run with."""

import argparse
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from leam_mm.captions.caption_encoders import AnyCaptions, encoder_file, from_transformers, open_caption_encoder
from leam_mm.checkpoint import checkpoint_config, read_checkpoint
from leam_mm.codec_module import codec_file, load_codec, signed
from leam_mm.codecs.latent_codec import LatentCodec, LatentStatistics
from leam_mm.data.array_format import array_bytes, from_stored, to_stored
from leam_mm.data.aspect_buckets import AspectBuckets, PictureSize, Shape
from leam_mm.data.image_decoding import ImageDecoding, image_member, open_picture
from leam_mm.data.latent_members import FEATURE, LATENT, LOG_VARIANCE, state_member
from leam_mm.data.shard_index import ShardFolder
from leam_mm.encoders.patch_features import PatchFeatures, open_patch_features
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

STATISTICS = "codec_statistics.json"
TEXTS_AT_ONCE = 1024
Sample = tuple[str, dict[str, bytes]]
Pictures = dict[str, np.ndarray]  # what was seen in a batch of pictures: raw, [log_variance], size, [feature]


@dataclass(frozen=True)
class Encoding:
    """Everything that decides what the output contains: two runs with equal settings write equal bytes.

    Args:
        shards: Merkle root of the input.
        codec_sha256: Of the codec's file.
        text_sha256: Of each text encoder, in the order of their states.
        text_length: Tokens per caption at most, of encoders of transformers.
        feature_sha256: Of the image encoder whose patch tokens are stored; None stores none.
        feature_size: Side in pixels of the pictures it sees.
        image_sizes: H = W in pixels of each resolution; of buckets, the side of the square one.
        buckets: ``multiple`` and ``max_ratio`` of the aspect-ratio buckets, or None.
        moments: Keep the posterior's log-variance too.
        captions_per_sample: K, caption states of each sample at most.
        languages: Captions in these only, where a sample has any; None takes all.
        seed: Of the choice of captions.
        dtype: Of the stored latents and caption states.
        statistics_sha256: Of the statistics taken from another folder; None measures them.
        tile: Side in pixels of the codec's tiles (LatentCodec.set_tile); None takes whole pictures.
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
        """The shapes, where pictures keep their aspect ratio."""
        if self.buckets is None:
            return None
        return AspectBuckets(self.image_sizes[0], int(self.buckets["multiple"]), self.buckets["max_ratio"])


@dataclass
class LatentEncoder:
    """The networks on their device.

    Args:
        codec: Pictures to latents.
        texts: Text encoders, in the order of their states.
        features: Image encoder whose patch tokens are stored, or None.
        encoding: What is written.
        device: Where the networks are.
        threads: That decode pictures.
    """

    codec: LatentCodec
    texts: list[AnyCaptions]
    features: PatchFeatures | None
    encoding: Encoding
    device: torch.device
    threads: int
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        """Start the threads."""
        self._pool = ThreadPoolExecutor(self.threads)
        self._buckets = self.encoding.aspect_buckets()

    def decode(self, samples: list[Sample], shape: Shape) -> tuple[Tensor, list[PictureSize]]:
        """Pictures (B, 3, H, W) uint8, cropped as codec training decodes its held-out ones, and what they were."""

        def one(sample: Sample) -> tuple[Tensor, PictureSize]:
            try:
                content = image_member(sample[1])
                return self._buckets.cut(content) if self._buckets else centre_square(content, shape[0])
            except UserError as error:
                raise UserError(f"sample {sample[0]}: {error}") from None

        images, sizes = zip(*self._pool.map(one, samples), strict=True)
        return torch.stack(images), list(sizes)

    def look(self, images: Tensor, sizes: list[PictureSize]) -> Pictures:
        """All that is computed of pictures (B, 3, H, W) uint8, before the statistics are known.

        Returns:
            raw (B, C, h, w) and log_variance (B, C, h, w) float32; size (B, 6); feature (B, N, D) float16.
        """
        picture = signed(images.to(self.device))
        seen: dict[str, Tensor] = {}
        if self.encoding.moments:
            posterior = self.codec.posterior(picture)
            seen["raw"], seen["log_variance"] = posterior.mean, posterior.logvar
        else:
            seen["raw"] = self.codec.encode_raw(picture)
        found = {name: value.float().cpu().numpy() for name, value in seen.items()} | {"size": np.array(sizes)}
        if self.features is not None:
            found["feature"] = to_stored(self.features.encode(picture).cpu().numpy(), "float16")
        return found

    def write_members(self, samples: list[Sample], pictures: Pictures) -> list[dict[str, bytes]]:
        """The members of the latent samples; the codec must have its statistics."""
        records = [read_captions(sample) for sample in samples]
        settings = self.encoding
        chosen = [
            choose_captions(record["captions"], settings.captions_per_sample, settings.seed, key, settings.languages)
            for (key, _), record in zip(samples, records, strict=True)
        ]
        arrays = self._latents(pictures, samples)
        states, lengths = self._states([[entry["text"] for entry in entries] for entries in chosen], samples)
        members = []
        for row, (record, entries) in enumerate(zip(records, chosen, strict=True)):
            stored = {name: array_bytes(array[row]) for name, array in arrays.items()}
            stored |= {state_member(number): array_bytes(state[row]) for number, state in enumerate(states)}
            size = PictureSize(*pictures["size"][row].tolist())
            record["caption_states"] = [
                {key: entry[key] for key in ("text", "language", "source") if key in entry} | length
                for entry, length in zip(entries, lengths[row], strict=True)
            ]
            record |= {"picture_size": list(size), "latent": self._about(size)}
            members.append({**stored, "json": json.dumps(record, ensure_ascii=False).encode()})
        return members

    def _latents(self, pictures: Pictures, samples: list[Sample]) -> dict[str, np.ndarray]:
        """Normalised latents, and what else was seen in the pictures."""
        codec, dtype = self.codec, self.encoding.dtype
        shift, scale = codec.shift.cpu().numpy(), codec.scale.cpu().numpy()
        arrays = {LATENT: (pictures["raw"] - shift) * scale}
        if "log_variance" in pictures:
            arrays[LOG_VARIANCE] = pictures["log_variance"] + 2 * np.log(scale)
        arrays = {name: to_stored(array, dtype) for name, array in arrays.items()}
        if "feature" in pictures:
            arrays[FEATURE] = pictures["feature"]
        for name, array in arrays.items():
            _check_finite(array, name, samples)
        return arrays

    def _states(
        self, texts: list[list[str]], samples: list[Sample]
    ) -> tuple[list[list[np.ndarray]], list[list[dict[str, Any]]]]:
        """States (K, L, D) of each sample by each encoder, L of its longest caption; and the captions' lengths."""
        flat = [text for several in texts for text in several]
        ends = np.cumsum([len(several) for several in texts])
        states: list[list[np.ndarray]] = []
        counts = []
        for encoder in self.texts:
            rows: list[np.ndarray] = []
            for first in range(0, len(flat), TEXTS_AT_ONCE):
                state, mask = encoder.encode(flat[first : first + TEXTS_AT_ONCE])
                values = to_stored((state * mask[..., None]).float().cpu().numpy(), self.encoding.dtype)
                _check_finite(values, "a caption state", samples)
                rows += [row[:length] for row, length in zip(values, mask.sum(1).tolist(), strict=True)]
            counts.append([len(row) for row in rows])
            states.append([_stack(rows[end - len(t) : end]) for end, t in zip(ends, texts, strict=True)])
        lengths = [
            {"length": sum(own), **({"lengths": list(own)} if len(own) > 1 else {})}
            for own in zip(*counts, strict=True)
        ]
        return states, [lengths[end - len(several) : end] for end, several in zip(ends, texts, strict=True)]

    def _about(self, size: PictureSize) -> dict[str, Any]:
        """What the json says of the latent."""
        settings = self.encoding
        about: dict[str, Any] = {
            "codec_sha256": settings.codec_sha256,
            "text_sha256": settings.text_sha256,
            "downscale": self.codec.downscale,
            "channels": self.codec.channels,
            "dtype": settings.dtype,
            "moments": settings.moments,
            "original_size": [size.original_height, size.original_width],
            "crop": [size.crop_top, size.crop_left, size.target_height, size.target_width],
        }
        if self.features is not None:
            grid = list(self.features.grid(size.target_height, size.target_width))
            about["feature"] = {"sha256": settings.feature_sha256, "grid": grid}
        return about


def centre_square(content: bytes, side: int) -> tuple[Tensor, PictureSize]:
    """The centre square of a picture (3, side, side) uint8, and what it was."""
    image = ImageDecoding(side)(content, np.random.default_rng(0))
    width, height = open_picture(content).size
    scale = side / min(width, height)
    top, left = round((height * scale - side) / 2), round((width * scale - side) / 2)
    return image, PictureSize(height, width, top, left, side, side)


def statistics_of(pictures: Pictures) -> LatentStatistics:
    """Statistics of raw latents; with moments, those of draws from the posterior, in expectation over its noise."""
    statistics = LatentStatistics.of(torch.from_numpy(pictures["raw"]))
    if "log_variance" not in pictures:
        return statistics
    # The law of total variance: that of the means, and the mean of the variances.
    variance = np.exp(rearrange(pictures["log_variance"], "b c h w -> c (b h w)").astype(np.float64)).sum(1)
    return LatentStatistics(statistics.count, statistics.mean, statistics.deviation + torch.from_numpy(variance))


def choose_captions(
    captions: list[dict[str, Any]], count: int, seed: int, key: str, languages: list[str] | None = None
) -> list[dict[str, Any]]:
    """Draw up to ``count`` different captions, one language after the other in an order drawn from (seed, key)."""
    captions = [caption for caption in captions if caption["language"] in (languages or [])] or captions
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))
    by_language: dict[str, list[dict[str, Any]]] = {}
    for caption in captions:
        by_language.setdefault(str(caption["language"]), []).append(caption)
    names = sorted(by_language)
    order = [by_language[names[place]] for place in generator.permutation(len(names))]
    queues = [[group[place] for place in generator.permutation(len(group))] for group in order]
    rounds = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return rounds[:count]


def read_captions(sample: Sample) -> dict[str, Any]:
    """The json of a sample, which must hold captions."""
    key, members = sample
    try:
        record = json.loads(members["json"])
        complete = bool(record["captions"]) and all("text" in c and "language" in c for c in record["captions"])
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(f"sample {key} has no json with captions: run data_tools/check_shards.py on the folder")
    return record


def _stack(states: list[np.ndarray]) -> np.ndarray:
    """Captions of different lengths: each (L_k, D) -> (K, longest, D), zero beyond each end."""
    stacked = np.zeros((len(states), max(map(len, states)), states[0].shape[1]), states[0].dtype)
    for place, state in zip(stacked, states, strict=True):
        place[: len(state)] = state
    return stacked


def _check_finite(array: np.ndarray, name: str, samples: list[Sample]) -> None:
    if not np.isfinite(from_stored(array)).all():
        kind = "bfloat16" if array.dtype == np.uint16 else str(array.dtype)
        cure = "" if name == FEATURE else "give --dtype float32 or bfloat16, or "
        raise UserError(
            f"{name} between sample {samples[0][0]} and {samples[-1][0]} does not fit {kind}: {cure}take a network "
            "that has not diverged"
        )


def trained_image_size(path: Path) -> int | None:
    """H = W in pixels of the pictures that a codec of our training saw; None for a folder of diffusers."""
    if (path / "config.json").is_file():
        return None
    section = checkpoint_config(read_checkpoint(path)).get("data") or {}
    image = (section.get("init_args") or {}).get("image") or {}
    return (image.get("init_args") or image).get("image_size")


def statistics_file(path: Path) -> Path:
    """Where the statistics lie that --statistics names."""
    file = path / STATISTICS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--statistics {path} names no {STATISTICS}: give the latent folder of the training set")
    return file


def open_encoder(options: argparse.Namespace, device: torch.device, threads: int = 0) -> LatentEncoder:
    """Load the networks and settle what will be written.

    Args:
        options: Of the command line of encode_latents.
        device: Of the networks.
        threads: That decode pictures; 0 takes up to eight.
    """
    codec, trained_size = load_codec(options.codec), trained_image_size(options.codec)
    codec_sha256 = file_sha256(codec_file(options.codec))
    sizes = sorted(set(options.image_size or ([trained_size] if trained_size else [])))
    if not sizes:
        raise UserError(f"{options.codec} does not say how large its images are: give --image-size")
    for size in sizes:
        if size < 1 or size % codec.downscale:
            raise UserError(
                f"--image-size {size} does not fit the codec of {options.codec}: give a multiple of {codec.downscale}"
            )
    if options.moments and not codec.variational:
        raise UserError(f"--moments: {options.codec} is an AutoencoderDC, which has no posterior; leave --moments out")
    texts, digests = [], []
    for kind, path in options.text_encoders:
        if from_transformers(path) != (kind == "transformers"):
            raise UserError(
                f"{path}: --clip takes a run or checkpoint of ours, --text-encoder a folder of transformers"
            )
        texts.append(open_caption_encoder(path, options.text_length).to(device))
        digests.append(encoder_file(path)[1])
    features = open_patch_features(options.features, options.feature_size) if options.features else None
    statistics = options.statistics and statistics_file(options.statistics)
    encoding = Encoding(
        shards=ShardFolder(options.shards).merkle_root,
        codec_sha256=codec_sha256,
        text_sha256=digests,
        text_length=options.text_length,
        feature_sha256=features.sha256 if features else None,
        feature_size=features.size if features else None,
        image_sizes=sizes,
        buckets=bucket_settings(options, codec, sizes),
        moments=options.moments,
        captions_per_sample=options.captions_per_sample,
        languages=sorted(options.languages) if options.languages else None,
        seed=options.seed,
        dtype=options.dtype,
        statistics_sha256=file_sha256(statistics) if statistics else None,
        tile=options.tile,
    )
    codec.set_tile(options.tile)
    codec = codec.eval().requires_grad_(False).to(device)
    threads = threads or min(8, os.cpu_count() or 1)
    return LatentEncoder(codec, texts, features.to(device) if features else None, encoding, device, threads)


def bucket_settings(options: argparse.Namespace, codec: LatentCodec, sizes: list[int]) -> dict[str, float] | None:
    """The settings of the aspect-ratio buckets, where the command line asks for them."""
    if not options.buckets:
        return None
    if len(sizes) != 1:
        raise UserError(f"--buckets takes one --image-size, the side of the square bucket, not {sizes}")
    multiple = options.bucket_multiple or 2 * codec.downscale
    if multiple % codec.downscale:
        raise UserError(f"--bucket-multiple {multiple} does not fit the codec: give a multiple of {codec.downscale}")
    AspectBuckets(sizes[0], multiple, options.max_ratio)
    return {"multiple": multiple, "max_ratio": options.max_ratio}
