r"""Distances between two sets of images; no recipe is needed.

python evaluate.py images --real photos --generated drawn --output compared
python evaluate.py images --real photos --generated drawn --features inception \
    --weights pt_inception-2015-12-05-6726825d.pth --output compared
python evaluate.py images --real statistics.npz --generated drawn --features inception \
    --weights pt_inception-2015-12-05-6726825d.pth --output compared

A set is a folder of images of any size and its sub-folders, a shard folder, or an .npz file with mu and sigma as
pytorch-fid and torch-fidelity write it. The record beside every number lists all that must be equal to compare it.
"""

import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from leam_mm.command_line import NonNegativeInt, PositiveInt, parse_settings
from leam_mm.distances.statistics_file import read_statistics, write_statistics
from leam_mm.distances.wavelet_distance import WaveletPackets
from leam_mm.errors import UserError
from leam_mm.evaluators.compare_image_sets import MeasuredSet, as_metrics, compare_sets, measure_set
from leam_mm.evaluators.compared_images import ComparedImages, read_background
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.image_features import ClipFeatures, EfficientNetLite0, ImageFeatures, Inception
from leam_mm.evaluators.results import RESULTS, append_results, evidence
from leam_mm.intervals.indicative import INDICATIVE
from leam_mm.report.report_page import write_report
from leam_mm.run_lock import output_lock

GROUP = "images"
LIBRARIES = ("torch", "numpy", "pillow", "scipy", "timm")  # that a number may depend on


@dataclass(frozen=True)
class ImagesOptions:
    """Settings of the comparison.

    Args:
        real: Folder, shard folder or .npz file of the real images.
        generated: The same of the images that are compared with them.
        output: Folder for results.jsonl (new lines are appended) and report.html.
        features: Network: inception (FID, sFID, KID, IS as published), efficientnet (its weights come with a package),
            clip (CMMD), or none.
        weights: Weights of inception, or the encoder of clip: checkpoint, run, release or folder of open_clip.
        resize: Resize of inception: tf1 (TTUR, torch-fidelity), clean (clean-fid) or pytorch_fid.
        wavelet_size: Side in pixels for the Fréchet Wavelet Distance; 256 is the published one, 0 leaves it out.
        background: Colour below transparent pixels, by name or #rrggbb.
        limit: Number of images of each set, spread evenly over it.
        batch_size: Images in one forward pass.
        skip_unreadable: Count unreadable images in place of an error.
        stream: Keep no features of single images: memory does not grow with the sets; Fréchet distances only, without
            intervals.
        statistics: Write real.npz and generated.npz, mean and covariance of the features, into the output folder.
        seed: Seed of the intervals' draws.
        device: Device; auto uses the GPU if there is one.
    """

    real: Path
    generated: Path
    output: Path
    features: Literal["efficientnet", "inception", "clip", "none"] = "efficientnet"
    weights: Path | None = None
    resize: Literal["tf1", "clean", "pytorch_fid"] = "tf1"
    wavelet_size: NonNegativeInt = 64
    background: str = "white"
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 32
    skip_unreadable: bool = False
    stream: bool = False
    statistics: bool = False
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


def compare_images(options: ImagesOptions) -> list[Metric]:
    """Measure, and write results and report.

    Raises:
        UserError: A set cannot be read or is too small, both are the same, or the weights are wrong.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    network = _network(options)
    wavelets = WaveletPackets(options.wavelet_size) if options.wavelet_size else None
    if network is None and wavelets is None:
        raise UserError("--features none --wavelet-size 0: there is nothing to measure; leave one of them out")
    _check_paths(options.real, options.generated)
    context, start = EvaluationContext(None, None, options.output, device), time.monotonic()
    if network is not None:
        network.to(device)
    with output_lock(options.output):
        sets = {"real": options.real, "generated": options.generated}
        measured, records = {}, {}
        for name, path in sets.items():
            measured[name], records[name] = _measure(path, options, network, wavelets)
        shared = _shared(records)
        record = _record(options, network, wavelets, records) | {"images_in_both_sets": shared}
        _check_protocols(measured)
        found = compare_sets(
            measured["real"], measured["generated"], bool(network and network.unit_length), wavelets, options.seed
        )
        if not found:
            raise UserError(
                f"{options.real} and {options.generated} have nothing in common that can be compared: an .npz file "
                "has the features of one network only, which --features must name"
            )
        counts = [each.count for each in measured.values() if each.count is not None]
        note = _note(records, options, network, wavelets, shared)
        metrics = as_metrics(found, GROUP, min(counts, default=0), note)
        for name, each in measured.items():
            if options.statistics and sets[name].suffix != ".npz" and (moments := each.moments_of("features")):
                write_statistics(options.output / f"{name}.npz", moments, record | records[name])
        line = evidence(context, options, time.monotonic() - start) | {"compared": record}
        append_results(options.output, metrics, line)
        write_report(options.output, options.output / "report.html", title=f"Images {options.output.name}")
    return metrics


def _network(options: ImagesOptions) -> ImageFeatures | None:
    if options.features in ("inception", "clip") and options.weights is None:
        what = "pt_inception-2015-12-05-6726825d.pth" if options.features == "inception" else "an encoder"
        raise UserError(f"--features {options.features} needs --weights: give the path of {what}")
    if options.features in ("efficientnet", "none") and options.weights is not None:
        raise UserError(f"--features {options.features} takes no --weights: leave it out, or choose inception or clip")
    if options.features == "efficientnet":
        return EfficientNetLite0()
    if options.features == "inception":
        assert options.weights is not None
        return Inception(options.weights, options.resize)
    return ClipFeatures(options.weights) if options.features == "clip" else None


def _check_paths(real: Path, generated: Path) -> None:
    for path in (real, generated):
        if not path.exists():
            raise UserError(f"{path}: does not exist; give a folder of images, a shard folder or an .npz file")
    first, second = real.resolve(), generated.resolve()
    if first == second:
        raise UserError(f"--real and --generated are the same, {real}: give two different sets")
    for outer, inner in ((first, second), (second, first)):
        if inner.is_relative_to(outer):
            raise UserError(f"{inner} lies inside {outer}, whose sub-folders are read, too: move one of them")


def _measure(
    path: Path, options: ImagesOptions, network: ImageFeatures | None, wavelets: WaveletPackets | None
) -> tuple[MeasuredSet, dict[str, Any]]:
    if path.suffix == ".npz":
        statistics = read_statistics(path)
        return MeasuredSet.of_statistics(statistics), {"path": str(path), "images": statistics.count}
    images = ComparedImages(path, read_background(options.background), options.limit, options.skip_unreadable)
    measured = measure_set(images, network, wavelets, options.batch_size, keep=not options.stream)
    return measured, {
        "path": str(path), "images": images.count, "sha256": images.digest(), "transparent": images.transparent,
        "unreadable": len(images.unreadable), "distinct": len(set(images.digests)), "digests": images.digests,
    }  # fmt: skip


def _shared(records: dict[str, dict[str, Any]]) -> int | None:
    """Return the number of distinct images in both sets, None with an .npz file, and drop the digests of images."""
    real, generated = (record.pop("digests", None) for record in records.values())
    if real is None or generated is None:
        return None
    if set(real) == set(generated):
        paths = " and ".join(record["path"] for record in records.values())
        raise UserError(f"{paths} hold the same images: give two different sets")
    return len(set(real) & set(generated))


def _record(
    options: ImagesOptions,
    network: ImageFeatures | None,
    wavelets: WaveletPackets | None,
    records: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return all that must be equal to compare two numbers."""
    return {
        "features": network.protocol if network else None,
        "weights_sha256": network.weights_sha256 if network else None,
        "wavelets": wavelets.protocol if wavelets else None,
        "dtype": "network float32, statistics float64",
        "batch_size": options.batch_size,
        "background": options.background,
        "limit": options.limit,
        "colours": "RGB by Pillow; EXIF orientation and colour profiles ignored",
        "real": dict(records["real"]),
        "generated": dict(records["generated"]),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }


def _check_protocols(measured: dict[str, MeasuredSet]) -> None:
    """Refuse statistics that state another network, other weights or another resize."""
    stated = {name: each.record["features"] for name, each in measured.items() if each.record.get("features")}
    if len(set(stated.values())) > 1:
        text = "; ".join(f"{name}: {protocol}" for name, protocol in stated.items())
        raise UserError(f"the features of both sets were made in different ways ({text}): use one of them for both")


def _note(
    records: dict[str, dict[str, Any]],
    options: ImagesOptions,
    network: ImageFeatures | None,
    wavelets: WaveletPackets | None,
    shared: int | None,
) -> str:
    counts = [record["images"] for record in records.values()]
    words = [f"{counts[0] or 'an unknown number of'} real and {counts[1] or 'an unknown number of'} generated images"]
    words += [f"{shared} images are in both sets"] if shared else []
    skipped = sum(record.get("unreadable", 0) for record in records.values())
    words += [f"{skipped} unreadable images left out"] if skipped else []
    if any(record.get("transparent") for record in records.values()):
        words.append(f"transparency on {options.background}")
    words += [network.protocol] if network else []
    words += [wavelets.protocol] if wavelets else []
    return "; ".join(words)


def main(args: list[str]) -> None:
    """Parse the command line, compare, and print one line for each number."""
    options = parse_settings(ImagesOptions, __doc__, args, program="evaluate.py images")
    for metric in compare_images(options):
        value = "not measured" if metric.value is None else f"{metric.value:.6g}"
        interval = "" if metric.low is None else f"({metric.low:.4g} to {metric.high:.4g})"
        remark = metric.note.partition(";")[0] if metric.note.startswith((INDICATIVE, "not measured")) else ""
        print(f"{metric.name:36} {value:>12}  {interval:24} {remark}".rstrip())
    print(f"wrote {options.output / RESULTS} and {options.output / 'report.html'}")
