"""Measure which marks of generated images survive changes, at a false positive rate of one in a thousand.

Images are rendered scenes and crops of photographs, half each. The decoder's mark is on their decodings by a marked
codec, and its unmarked images are decodings of the codec before it was marked; the other marks are embedded in the
images. ``regenerated`` encodes and decodes once more with the unmarked codec, the known attack on such marks. The peer
is dwtDct of the package invisible-watermark, with 32 bits, where it is installed (`--peer FOLDER` of pip install
--target); it takes no images below 256 x 256 pixels.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from mark_changes import CHANGES, Change
from picture_copies import PHOTOGRAPHS, scenes
from PIL import Image
from rich.table import Table
from scipy.stats import binom, norm, t

from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.data.image_range import signed
from leam_mm.errors import UserError, run
from leam_mm.intervals.intervals import clustered_interval
from leam_mm.marking.decoder_mark import DecoderMark
from leam_mm.marking.generated_image import SOURCE_TYPE, save_generated
from leam_mm.marking.spread_spectrum import SpreadSpectrum
from leam_mm.marking.watermark import Watermark

RATE = 1e-3
BATCH = 16


def interval(found: Sequence[bool], only_scenes: bool) -> tuple[float, float]:
    """Interval of a share of images, in which crops of one photograph count as a cluster.

    It is exact (Clopper and Pearson 1934) where images are independent, as scenes are, or all are alike.
    """
    hits, share = np.array(found, float), float(np.mean(found))
    groups = np.arange(len(hits))
    if not only_scenes:
        groups[1::2] = -1 - np.arange(len(groups[1::2])) % len(PHOTOGRAPHS)
    _, group = np.unique(groups, return_inverse=True)
    count, effect = group.max() + 1, 1.0
    if 0 < share < 1 and count < len(hits):
        sums = np.bincount(group, hits - share)
        effect = float(count / (count - 1) * np.sum(sums**2) / (len(hits) * share * (1 - share)))
    return clustered_interval(
        share, len(hits), effect, float(norm.ppf(0.975) if effect <= 1 else t.ppf(0.975, count - 1))
    )


def photographs(count: int, side: int) -> Iterator[np.ndarray]:
    """Random crops of photographs, each at least as large as the image and at most twice."""
    folder, generator = importlib.resources.files("skimage") / "data", np.random.default_rng(side)
    loaded = []
    for name in PHOTOGRAPHS:
        with importlib.resources.as_file(folder / name) as path:
            loaded.append(Image.open(path).convert("RGB"))
    for number in range(count):
        picture = loaded[number % len(loaded)]
        part = round(min(min(picture.size), side * generator.uniform(1, 2)))
        left, top = (int(generator.integers(length - part + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + part, top + part))
        yield np.asarray(crop.resize((side, side), Image.Resampling.LANCZOS))


def pictures(count: int, side: int, only_scenes: bool = False) -> list[np.ndarray]:
    """Scenes and photographs in turns, or scenes alone, (side, side, 3) uint8."""
    if only_scenes:
        return [np.asarray(picture) for picture in scenes(count, side).values()]
    drawn = [np.asarray(picture) for picture in scenes(count - count // 2, side).values()]
    return [one for pair in zip(drawn, photographs(len(drawn), side), strict=True) for one in pair][:count]


@torch.inference_mode()
def decoded(images: list[np.ndarray], encoder: LatentCodec, decoder: LatentCodec) -> list[np.ndarray]:
    """Encode with one codec and decode with another; a border that does not fit the downscale is cut off."""
    unit, found = encoder.downscale, []
    for start in range(0, len(images), BATCH):
        batch_images = images[start : start + BATCH]
        part = [one[: one.shape[0] // unit * unit, : one.shape[1] // unit * unit] for one in batch_images]
        batch = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2)
        image = decoder.decode(encoder.encode(signed(batch)))
        found += list(((image + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return found


class DwtDct:
    """The peer, invisible-watermark's default, with a fixed message of 32 bits."""

    name = "invisible-watermark dwtDct"
    least_pixels = 256 * 256

    def __init__(self, folder: Path | None) -> None:
        """Import it; ModuleNotFoundError if it is not there."""
        if folder is not None:
            sys.path.append(str(folder))
        package: Any = importlib.import_module("imwatermark")
        self.bits = np.random.default_rng(1).integers(0, 2, 32)
        self.encoder, self.decoder = package.WatermarkEncoder(), package.WatermarkDecoder("bits", 32)
        self.encoder.set_watermark("bits", self.bits.tolist())

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return the marked image; it takes channels in the order of OpenCV."""
        return np.ascontiguousarray(self.encoder.encode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDct")[..., ::-1])

    def score(self, pixels: np.ndarray) -> float:
        """Return the number of agreeing bits; 0 for images that it refuses."""
        if pixels.shape[0] * pixels.shape[1] < self.least_pixels:
            return 0.0
        found = self.decoder.decode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDct")
        return float((np.asarray(found, int) == self.bits).sum())

    def false_positive_rate(self, score: float) -> float:
        """Return the binomial's tail: its bits are taken as fair and independent, which nobody has checked."""
        return float(binom.sf(score - 1, 32, 0.5))


class FileMark:
    """Text in the file of ``save_generated``, standing for all marks beside the pixels: they end with the file."""

    name = "metadata in the file"

    def survives(self, pixels: np.ndarray, change: Change | None) -> bool:
        """Whether the mark is read from the file, as it was written or after a change of the pixels."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "generated.png"
            save_generated(Image.fromarray(pixels), path, "model")
            if change is not None:
                with Image.open(path) as image:
                    Image.fromarray(change(np.asarray(image.convert("RGB")))).save(path)
            with Image.open(path) as image:
                return image.info.get("DigitalSourceType") == SOURCE_TYPE


@dataclass(frozen=True)
class Subject:
    """A mark with images of one size that carry it, and the same images without it.

    With photographs, scenes and photographs stand in turns, as ``pictures`` gives them.
    """

    mark: Watermark
    size: int
    marked: list[np.ndarray]
    unmarked: list[np.ndarray]
    only_scenes: bool


def noise_ratio(subject: Subject) -> list[float]:
    """PSNR between each unmarked and marked image in decibels."""
    pairs = zip(subject.marked, subject.unmarked, strict=False)  # fewer unmarked images may be scored
    errors = [float(np.mean((one.astype(float) - other) ** 2)) for one, other in pairs]
    return [10 * float(np.log10(255**2 / max(error, 1e-3))) for error in errors]


def row(subject: Subject, name: str, change: Callable[[list[np.ndarray]], list[np.ndarray]]) -> dict[str, Any]:
    """Detections among marked and unmarked images after a change."""
    detected: dict[str, list[bool]] = {}
    scores: dict[str, list[float]] = {}
    by_kind: dict[str, dict[str, int]] = {}
    for kind, images in (("marked", subject.marked), ("unmarked", subject.unmarked)):
        scores[kind] = [subject.mark.score(pixels) for pixels in change(images)]
        detected[kind] = [subject.mark.false_positive_rate(score) <= RATE for score in scores[kind]]
    if not subject.only_scenes:
        parts = {"scenes": detected["marked"][::2], "photographs": detected["marked"][1::2]}
        by_kind = {name: {"count": sum(part), "images": len(part)} for name, part in parts.items()}
    found: dict[str, Any] = {"mark": subject.mark.name, "size": subject.size, "change": name}
    for kind, key in (("marked", "detected"), ("unmarked", "false_positives")):
        count, hits = len(scores[kind]), sum(detected[kind])
        low, high = interval(detected[kind], subject.only_scenes)
        found[key] = {"count": hits, "images": count, "share": hits / count, "low": low, "high": high}
        found[f"{kind}_score"] = {"mean": float(np.mean(scores[kind])), "deviation": float(np.std(scores[kind]))}
    found["by_kind"] = by_kind
    counts = [f"{sum(detected[kind])} of {len(scores[kind])} {kind} images" for kind in scores]
    counts += ["{count} of {images}".format(**part) + f" {kind}" for kind, part in by_kind.items()]
    print(f"{subject.mark.name}, {subject.size} px, {name}: {', '.join(counts)}", flush=True)
    return found


def measured(subject: Subject, codec: LatentCodec | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each of the named changes."""
    rows = [row(subject, name, lambda images, change=change: [change(one) for one in images])  # type: ignore[misc]
            for name, change in CHANGES.items() if name in names]  # fmt: skip
    if codec is not None and "regenerated" in names:
        rows.append(row(subject, "regenerated", lambda images: decoded(images, codec, codec)))
    return rows


def subjects(settings: measure.Settings, codec: LatentCodec | None, missing: list[str]) -> Iterator[Subject]:
    """Every mark on images of every size; what is not there is named in `missing`."""
    for size in settings.sizes:
        images = pictures(settings.images, size, settings.only_scenes)
        some = settings.unmarked or settings.images
        if "spread" in settings.marks:
            spread = SpreadSpectrum()
            yield Subject(spread, size, [spread.embed(one) for one in images], images[:some], settings.only_scenes)
        if "decoder" not in settings.marks:
            missing.append(f"decoder mark, {size} px: not asked for")
        elif codec is not None and settings.detector.is_dir() and settings.marked.is_dir():
            plain, marked = decoded(images, codec, codec), decoded(images, codec, load_codec(settings.marked))
            yield Subject(DecoderMark.read(settings.detector), size, marked, plain[:some], settings.only_scenes)
        else:
            missing.append(f"decoder mark, {size} px: {settings.detector} or {settings.codec} is not there")
        if "peer" not in settings.marks:
            missing.append(f"invisible-watermark, {size} px: not asked for")
            continue
        try:
            peer = DwtDct(settings.peer)
        except ImportError as error:
            missing.append(f"invisible-watermark, {size} px: not installed ({error})")
            continue
        if size * size < peer.least_pixels:
            missing.append(f"invisible-watermark, {size} px: it refuses images below 256 x 256")
            continue
        yield Subject(peer, size, [peer.embed(one) for one in images], images[:some], settings.only_scenes)


def false_positives(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All unmarked images of a mark and size together; changed forms of one image are not independent."""
    count, hits = (sum(one["false_positives"][key] for one in rows) for key in ("images", "count"))
    low, high = interval([True] * hits + [False] * (count - hits), only_scenes=True)
    return {"count": hits, "images": count, "share": hits / count, "low": low, "high": high}


@measure.benchmark(
    1,
    images=(200, "images of each size"),
    sizes=([64, 256], "sides in pixels"),
    marks=(["spread", "decoder", "peer"], "marks that are measured"),
    changes=([*CHANGES, "regenerated"], "changes that are measured"),
    only_scenes=(False, "leave the photographs out, which the quickstart's codec was not trained on"),
    unmarked=(0, "unmarked images of each size that are scored; 0 for all"),
    codec=(Path("runs/quickstart/codec"), "codec before it was marked"),
    marked=(Path("runs/quickstart/decoder_mark/codec"), "marked codec"),
    detector=(Path("runs/quickstart/decoder_mark/detector"), "detector of the marked codec"),
    peer=(Path, "folder with invisible-watermark and PyWavelets, of pip install --target"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure every mark."""
    if settings.images < 2:
        raise UserError(f"--images {settings.images}: give at least 2")
    if unknown := set(settings.changes) - {*CHANGES, "regenerated"}:
        raise UserError(f"--changes {' '.join(sorted(unknown))}: give names among {', '.join(CHANGES)}, regenerated")
    codec = load_codec(settings.codec) if settings.codec.is_dir() else None
    missing: list[str] = []
    if codec is None and "regenerated" in settings.changes:
        missing.append(f"regenerated: {settings.codec} is not there")
    if missing and len(settings.changes) == 1:
        raise UserError(f"--changes regenerated needs a codec, and --codec {settings.codec} is not there")
    columns = ("mark", "px", "change", "detected", "95 %", "false positives")
    table = Table(*columns, title=f"{settings.images} images each")
    content: dict[str, Any] = {
        "rate": RATE,
        "only_scenes": settings.only_scenes,
        "rows": [],
        "together": [],
        "not_measured": missing,
    }
    for subject in subjects(settings, codec, missing):
        rows = measured(subject, codec, settings.changes)
        ratios = noise_ratio(subject)
        entry = {"mark": subject.mark.name, "size": subject.size, "false_positives": false_positives(rows)}
        entry["psnr"] = {"mean": float(np.mean(ratios)), "least": min(ratios), "median": float(np.median(ratios))}
        content["together"].append(entry)
        content["rows"] += rows
        for one in rows:
            found, wrong = one["detected"], one["false_positives"]
            table.add_row(
                one["mark"], str(one["size"]), one["change"], f"{found['share']:.1%}",
                f"{found['low']:.1%} to {found['high']:.1%}", str(wrong["count"]),
            )  # fmt: skip
    file_mark, example = FileMark(), pictures(2, 64)[0]
    content["file"] = {"copied": file_mark.survives(example, None)} | {
        name: file_mark.survives(example, change) for name, change in CHANGES.items()
    }
    wrong_file = float(not content["file"]["copied"])
    content["same_work"] = [measure.require_same("metadata is read from the file that was written", wrong_file, 0)]
    lines = [
        f"{one['mark']}, {one['size']} px: PSNR {one['psnr']['mean']:.1f} dB; false positives "
        "{count} of {images} ({low:.2%} to {high:.2%})".format(**one["false_positives"])
        for one in content["together"]
    ]
    kept = [name for name, survives in content["file"].items() if survives]
    lines += [f"metadata in the file: survives {', '.join(kept)}; nothing else", *missing]
    return [measure.write_result(content, settings, table, message="\n".join(lines))]


if __name__ == "__main__":
    run(main)
