"""The frozen networks that turn an image with captions into a latent sample."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data_tools.latents.encode_settings import EncodeSettings, Encoding
from data_tools.latents.shard_embedding import StoredSample
from leam_mm.captions.caption_encoders import AnyCaptions, encoder_file, from_transformers, open_caption_encoder
from leam_mm.checkpoint import checkpoint_config, is_run, read_checkpoint
from leam_mm.codecs.latent_codec import LatentCodec, LatentStatistics
from leam_mm.codecs.pretrained_codec import codec_file, load_codec
from leam_mm.data.array_format import array_bytes, from_stored, to_stored
from leam_mm.data.aspect_buckets import AspectBuckets, ImageSize, Shape
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.image_file import open_image
from leam_mm.data.image_range import signed
from leam_mm.data.latent_members import FEATURE, LATENT, LOG_VARIANCE, state_member
from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.shard_index import ShardFolder
from leam_mm.encoders.patch_features import PatchFeatures, open_patch_features
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

Item = TypeVar("Item")
Result = TypeVar("Result")
STATISTICS = "codec_statistics.json"
TEXTS_AT_ONCE = 1024
Encoded = dict[str, np.ndarray]  # of a batch of images: raw, [log_variance], size, [feature]


@dataclass
class LatentEncoder:
    """The networks on their device.

    Args:
        codec: Images to latents.
        texts: Text encoders, in the order of their states.
        features: Image encoder whose patch tokens are stored, or None.
        encoding: Settings of the output.
        device: Where the networks are.
        threads: Number of threads that decode images.
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

    def decode(self, samples: list[StoredSample], shape: Shape) -> tuple[Tensor, list[ImageSize]]:
        """Return images (B, 3, H, W) uint8, cropped as in the validation of a codec, and their original sizes."""
        images, sizes = zip(*self.map(lambda sample: self.decode_one(sample, shape), samples), strict=True)
        return torch.stack(images), list(sizes)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Call a function for all items in the threads that decode."""
        return self._pool.map(function, items)

    def decode_one(self, sample: StoredSample, shape: Shape) -> tuple[Tensor, ImageSize]:
        """Return the image of a sample, (3, H, W) uint8, and its original size; its captions must be usable, too."""
        try:
            read_captions(sample)
            content = image_member(sample[1])
            return self._buckets.cut(content) if self._buckets else centre_square(content, shape[0])
        except UserError as error:
            raise UserError(f"sample {sample[0]}: {str(error).removeprefix(f'sample {sample[0]}: ')}") from None

    def encode_images(self, images: Tensor, sizes: list[ImageSize]) -> Encoded:
        """Encode images (B, 3, H, W) uint8; needs no statistics.

        Returns:
            raw (B, C, h, w) and log_variance (B, C, h, w) float32; size (B, 6); feature (B, N, D) float16.
        """
        image = signed(images.to(self.device))
        latents: dict[str, Tensor] = {}
        if self.encoding.moments:
            posterior = self.codec.posterior(image)
            latents["raw"], latents["log_variance"] = posterior.mean, posterior.logvar
        else:
            latents["raw"] = self.codec.encode_raw(image)
        encoded = {name: value.float().cpu().numpy() for name, value in latents.items()} | {"size": np.array(sizes)}
        if self.features is not None:
            encoded["feature"] = to_stored(self.features.encode(image).cpu().numpy(), "float16")
        return encoded

    def write_members(self, samples: list[StoredSample], encoded: Encoded) -> list[dict[str, bytes]]:
        """Return the members of the latent samples; the codec must have its statistics."""
        records = [read_captions(sample) for sample in samples]
        settings = self.encoding
        chosen = [
            choose_captions(record["captions"], settings.captions_per_sample, settings.seed, key, settings.languages)
            for (key, _), record in zip(samples, records, strict=True)
        ]
        arrays = self._latents(encoded, samples)
        states, lengths = self._states([[entry["text"] for entry in entries] for entries in chosen], samples)
        members = []
        for row, (record, entries) in enumerate(zip(records, chosen, strict=True)):
            stored = {name: array_bytes(array[row]) for name, array in arrays.items()}
            stored |= {state_member(number): array_bytes(state[row]) for number, state in enumerate(states)}
            size = ImageSize(*encoded["size"][row].tolist())
            record["caption_states"] = [
                {key: entry[key] for key in ("text", "language", "source") if key in entry} | length
                for entry, length in zip(entries, lengths[row], strict=True)
            ]
            record |= {"picture_size": list(size), "latent": self._about(size)}
            members.append({**stored, "json": json.dumps(record, ensure_ascii=False).encode()})
        return members

    def _latents(self, encoded: Encoded, samples: list[StoredSample]) -> dict[str, np.ndarray]:
        """Return normalised latents, their log-variance and the patch tokens, in the types in which they are stored."""
        codec, dtype = self.codec, self.encoding.dtype
        shift, scale = codec.shift.cpu().numpy(), codec.scale.cpu().numpy()
        arrays = {LATENT: (encoded["raw"] - shift) * scale}
        if "log_variance" in encoded:
            arrays[LOG_VARIANCE] = encoded["log_variance"] + 2 * np.log(scale)
        arrays = {name: to_stored(array, dtype) for name, array in arrays.items()}
        if "feature" in encoded:
            arrays[FEATURE] = encoded["feature"]
        for name, array in arrays.items():
            _check_finite(array, name, samples)
        return arrays

    def _states(
        self, texts: list[list[str]], samples: list[StoredSample]
    ) -> tuple[list[list[np.ndarray]], list[list[dict[str, Any]]]]:
        """Return each encoder's states (K, L, D) of each sample, L of its longest caption, and all lengths, if any."""
        flat = [text for captions in texts for text in captions]
        ends = np.cumsum([len(captions) for captions in texts])
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
        if not self.texts:
            return [], [[{}] * len(captions) for captions in texts]
        lengths = [
            {"length": sum(own), **({"lengths": list(own)} if len(own) > 1 else {})}
            for own in zip(*counts, strict=True)
        ]
        return states, [lengths[end - len(captions) : end] for end, captions in zip(ends, texts, strict=True)]

    def _about(self, size: ImageSize) -> dict[str, Any]:
        """Return the description of the latent for the json."""
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


def centre_square(content: bytes, side: int) -> tuple[Tensor, ImageSize]:
    """Return the centre square of an image, (3, side, side) uint8, and its original size."""
    image = ImageDecoding(side)(content, np.random.default_rng(0))
    width, height = open_image(content).size
    scale = side / min(width, height)
    top, left = round((height * scale - side) / 2), round((width * scale - side) / 2)
    return image, ImageSize(height, width, top, left, side, side)


def statistics_of(encoded: Encoded) -> LatentStatistics:
    """Return the statistics of raw latents; with moments, their expectation over draws from the posterior."""
    statistics = LatentStatistics.of(torch.from_numpy(encoded["raw"]))
    if "log_variance" not in encoded:
        return statistics
    # Law of total variance: the variance of the means plus the mean of the variances.
    variance = np.exp(rearrange(encoded["log_variance"], "b c h w -> c (b h w)").astype(np.float64)).sum(1)
    return LatentStatistics(statistics.count, statistics.mean, statistics.deviation + torch.from_numpy(variance))


def choose_captions(
    captions: list[dict[str, Any]], count: int, seed: int, key: str, languages: list[str] | None = None
) -> list[dict[str, Any]]:
    """Draw up to ``count`` different captions, taking turns between languages, in an order drawn from (seed, key)."""
    captions = [caption for caption in captions if caption["language"] in (languages or [])] or captions
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))
    by_language: dict[str, list[dict[str, Any]]] = {}
    for caption in captions:
        by_language.setdefault(str(caption["language"]), []).append(caption)
    names = sorted(by_language)
    order = [by_language[names[index]] for index in generator.permutation(len(names))]
    queues = [[group[index] for index in generator.permutation(len(group))] for group in order]
    rounds = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return rounds[:count]


def read_captions(sample: StoredSample) -> dict[str, Any]:
    """Return the json of a sample, which must hold captions."""
    key, members = sample
    try:
        record = read_sample_json(members)
        sample_captions(record)
    except UserError as error:
        raise UserError(f"sample {key}: {error}") from None
    return record


def _stack(states: list[np.ndarray]) -> np.ndarray:
    """Pad the states of captions with zeros: each (L_k, D) -> (K, longest, D)."""
    stacked = np.zeros((len(states), max(map(len, states)), states[0].shape[1]), states[0].dtype)
    for row, state in zip(stacked, states, strict=True):
        row[: len(state)] = state
    return stacked


def _check_finite(array: np.ndarray, name: str, samples: list[StoredSample]) -> None:
    if not np.isfinite(from_stored(array)).all():
        kind = "bfloat16" if array.dtype == np.uint16 else str(array.dtype)
        fix = "" if name == FEATURE else "give --dtype float32 or bfloat16, or "
        raise UserError(
            f"{name} between sample {samples[0][0]} and {samples[-1][0]} does not fit {kind}: {fix}take a network "
            "that has not diverged"
        )


def trained_image_size(path: Path) -> int | None:
    """Return H = W in pixels of the images that one of our codecs was trained on; None for one of diffusers."""
    if not is_run(path):
        return None
    section = checkpoint_config(read_checkpoint(path)).get("data") or {}
    image = (section.get("init_args") or {}).get("image") or {}
    size = (image.get("init_args") or image).get("image_size") if isinstance(image, dict) else None
    return size if isinstance(size, int) else None


def statistics_file(path: Path) -> Path:
    """Return the statistics file that --statistics names, itself or by its folder."""
    file = path / STATISTICS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--statistics {path} names no {STATISTICS}: give the latent folder of the training set")
    return file


def open_encoder(settings: EncodeSettings, device: torch.device, threads: int = 0) -> LatentEncoder:
    """Load the networks and determine the settings of the output.

    Args:
        settings: Settings of the program.
        device: Device of the networks.
        threads: Number of threads that decode images; 0 takes up to eight.
    """
    codec, trained_size = load_codec(settings.codec), trained_image_size(settings.codec)
    codec_sha256 = file_sha256(codec_file(settings.codec))
    sizes = sorted(set(settings.image_size or ([trained_size] if trained_size else [])))
    if not sizes:
        raise UserError(f"{settings.codec} does not say how large its images are: give --image-size")
    for size in sizes:
        if size < 1 or size % codec.downscale:
            raise UserError(
                f"--image-size {size} does not fit the codec of {settings.codec}: give a multiple of {codec.downscale}"
            )
    if settings.moments and not codec.variational:
        raise UserError(f"--moments: {settings.codec} is an AutoencoderDC, which has no posterior; omit --moments")
    texts, digests = [], []
    for kind, path in (_text_encoder(given) for given in settings.text_encoders):
        if from_transformers(path) != (kind == "transformers"):
            raise UserError(
                f"{path}: --clip takes a run or checkpoint of ours, --text-encoder a folder of transformers"
            )
        texts.append(open_caption_encoder(path, settings.text_length).to(device))
        digests.append(encoder_file(path)[1])
    features = open_patch_features(settings.features, settings.feature_size) if settings.features else None
    statistics = settings.statistics and statistics_file(settings.statistics)
    encoding = Encoding(
        shards=ShardFolder(settings.shards).merkle_root,
        codec_sha256=codec_sha256,
        text_sha256=digests,
        text_length=settings.text_length,
        feature_sha256=features.sha256 if features else None,
        feature_size=features.size if features else None,
        image_sizes=sizes,
        buckets=_bucket_settings(settings, codec, sizes),
        moments=settings.moments,
        captions_per_sample=settings.captions_per_sample,
        languages=sorted(settings.languages) if settings.languages else None,
        seed=settings.seed,
        dtype=settings.dtype,
        statistics_sha256=file_sha256(statistics) if statistics else None,
        tile=settings.tile,
    )
    codec.set_tile(settings.tile)
    codec = codec.eval().requires_grad_(False).to(device)
    threads = threads or min(8, os.cpu_count() or 1)
    return LatentEncoder(codec, texts, features.to(device) if features else None, encoding, device, threads)


def _text_encoder(given: str) -> tuple[str, str]:
    kind, _, path = given.partition("=")
    if kind not in ("clip", "transformers") or not path:
        raise UserError(f"--text-encoders {given}: give clip=RUN or transformers=FOLDER")
    return kind, path


def _bucket_settings(settings: EncodeSettings, codec: LatentCodec, sizes: list[int]) -> dict[str, float] | None:
    """Return the settings of the aspect-ratio buckets, or None without --buckets."""
    if not settings.buckets:
        return None
    if len(sizes) != 1:
        raise UserError(f"--buckets takes one --image-size, the side of the square bucket, not {sizes}")
    multiple = settings.bucket_multiple or 2 * codec.downscale
    if multiple % codec.downscale:
        raise UserError(f"--bucket-multiple {multiple} does not fit the codec: give a multiple of {codec.downscale}")
    AspectBuckets(sizes[0], multiple, settings.max_ratio)
    return {"multiple": multiple, "max_ratio": settings.max_ratio}
