"""Two sets of images compared by every distance that their features and their number allow."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from leam_mm.distances.feature_statistics import FeatureMoments, MomentStream
from leam_mm.distances.frechet import frechet_distance
from leam_mm.distances.frechet_infinity import REAL_FINITE, frechet_infinity
from leam_mm.distances.inception_score import inception_score
from leam_mm.distances.set_distances import (
    FEWEST,
    FEWEST_OF_DISTRIBUTIONS,
    Compared,
    SetDistance,
    compare_features,
    set_distances,
)
from leam_mm.distances.statistics_file import FeatureStatistics
from leam_mm.distances.wavelet_distance import WaveletPackets, wavelet_distance, wavelet_distance_of_moments
from leam_mm.errors import UserError
from leam_mm.evaluators.compared_images import ComparedImages
from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.intervals.distance_interval import interval_of_halves, values_of_halves
from leam_mm.intervals.indicative import indicative

NO_INTERVAL = "no interval: features of single images were not kept"
MOMENT_OUTPUTS = ("features", "spatial")  # whose Fréchet distances need no features of single images


@dataclass
class MeasuredSet:
    """What is known of a set of images.

    Args:
        count: Number of images, or None if a file of statistics does not state it.
        outputs: (B, D) outputs of the network by name; empty where only moments were kept.
        packets: (B, P, D) wavelet coefficients, or None.
        moments: Moments of outputs.
        packet_moments: Moments of each wavelet packet.
        record: What must be equal for a comparison.
    """

    count: int | None
    outputs: dict[str, Tensor] = field(default_factory=dict)
    packets: Tensor | None = None
    moments: dict[str, FeatureMoments] = field(default_factory=dict)
    packet_moments: list[FeatureMoments] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_statistics(cls, statistics: FeatureStatistics) -> "MeasuredSet":
        """Return the set of a file of statistics."""
        return cls(statistics.count, moments={"features": statistics.moments}, record=statistics.record)

    def moments_of(self, output: str) -> FeatureMoments | None:
        """Return the moments of an output, or None if the set has no such output."""
        if output not in self.moments and output in self.outputs:
            self.moments[output] = FeatureMoments.of(self.outputs[output])
        return self.moments.get(output)


def measure_set(
    images: ComparedImages,
    features: ImageFeatures | None,
    wavelets: WaveletPackets | None,
    batch_size: int = 32,
    keep: bool = True,
) -> MeasuredSet:
    """Read a set of images once.

    Args:
        images: The set.
        features: The network, or None.
        wavelets: The wavelet packets, or None.
        batch_size: Images in one forward pass.
        keep: Whether features of single images are kept; without them memory does not grow with the number of images,
            and only Fréchet distances are measured, without intervals.

    Raises:
        UserError: An image cannot be read, features are not finite, or the set has fewer than 8 images.
    """
    kept: dict[str, list[Tensor]] = {}
    streams: dict[str, MomentStream] = {}
    packets: list[Tensor] = []
    packet_streams = [MomentStream() for _ in range(4**wavelets.level)] if wavelets else []
    for names, batch in _batches(images, batch_size):
        for output, values in (features.extract_each(batch) if features else {}).items():
            _check_finite(values, images, names)
            if keep:  # networks compute in float32: nothing is rounded, except in embeddings of length 1
                kept.setdefault(output, []).append(values if features and features.unit_length else values.float())
            elif output in MOMENT_OUTPUTS:
                streams.setdefault(output, MomentStream()).add(values)
        if wavelets and keep:
            packets.append(wavelets.extract(batch).float())
        elif wavelets:
            for stream, part in zip(packet_streams, wavelets.extract(batch).unbind(1), strict=True):
                stream.add(part)
    if images.count < FEWEST:
        raise UserError(f"{images.path}: holds {images.count} readable images, a distance needs {FEWEST} in each set")
    return MeasuredSet(
        images.count,
        {name: torch.cat(parts) for name, parts in kept.items()},
        torch.cat(packets) if packets else None,
        {name: stream.moments() for name, stream in streams.items()},
        [stream.moments() for stream in packet_streams if stream.count],
        {"features": features.protocol} if features else {},
    )


def _batches(images: ComparedImages, batch_size: int) -> Iterator[tuple[list[str], list[Tensor]]]:
    with Progress(transient=True) as progress:
        total = images.total if images.limit is None else min(images.limit, images.total)
        task = progress.add_task(images.path.name, total=total)
        found = images.images()
        while batch := list(islice(found, batch_size)):
            yield [name for name, _ in batch], [pixels for _, pixels in batch]
            progress.update(task, advance=len(batch))


def _check_finite(values: Tensor, images: ComparedImages, names: list[str]) -> None:
    finite = torch.isfinite(values).all(dim=1)
    if not finite.all():
        name = names[int((~finite).nonzero()[0])]
        raise UserError(
            f"{images.path}: {name}: its features are not finite; the weights are damaged or the network diverged, "
            "give other weights"
        )


def compare_sets(
    real: MeasuredSet,
    generated: MeasuredSet,
    unit_length: bool = False,
    wavelets: WaveletPackets | None = None,
    seed: int = 0,
) -> list[Compared]:
    """Return every distance that both sets allow.

    Args:
        real: The real images.
        generated: The others.
        unit_length: Whether features have length 1.
        wavelets: How packets were made, or None.
        seed: Seed of the intervals' draws.

    Raises:
        UserError: Both sets have features, of different numbers.
    """
    found: list[Compared] = []
    pair = [each.moments_of("features") for each in (real, generated)]
    if pair[0] and pair[1] and len(pair[0].mean) != len(pair[1].mean):
        raise UserError(
            f"the real set has {len(pair[0].mean)} features, the generated one {len(pair[1].mean)}: "
            "both need the same network"
        )
    kept = "features" in real.outputs and "features" in generated.outputs
    if kept:
        distances = set_distances(unit_length)
        found += compare_features(real.outputs["features"], generated.outputs["features"], distances, seed=seed)
    elif pair[0] and pair[1]:
        found.append(_frechet("frechet_distance", real, generated, "features"))
        if "features" in generated.outputs:  # statistics of the real images, as published numbers have
            value = frechet_infinity(pair[0], generated.outputs["features"].double())
            found.append(
                _of_moments("frechet_distance_infinity", value, real, generated, len(pair[0].mean), REAL_FINITE)
            )
    if "spatial" in real.outputs and "spatial" in generated.outputs:
        spatial = {"spatial_frechet_distance": set_distances()["frechet_distance"]}
        found += compare_features(real.outputs["spatial"], generated.outputs["spatial"], spatial, seed=seed)
    elif real.moments_of("spatial") and generated.moments_of("spatial"):
        found.append(_frechet("spatial_frechet_distance", real, generated, "spatial"))
    if "logits" in generated.outputs:
        found.append(_score(generated.outputs["logits"], seed))
    if wavelets and real.packets is not None and generated.packets is not None:
        found += _wavelets(real.packets, generated.packets, wavelets, seed)
    elif wavelets and real.packet_moments and generated.packet_moments:
        value = wavelet_distance_of_moments(real.packet_moments, generated.packet_moments)
        found.append(_of_moments("wavelet_distance", value, real, generated, wavelets.features))
    return found


def _frechet(name: str, real: MeasuredSet, generated: MeasuredSet, output: str) -> Compared:
    first, second = real.moments_of(output), generated.moments_of(output)
    assert first is not None and second is not None
    return _of_moments(name, frechet_distance(first, second), real, generated, len(first.mean))


def _of_moments(
    name: str, value: float, real: MeasuredSet, generated: MeasuredSet, size: int, remark: str = ""
) -> Compared:
    counts = [each.count for each in (real, generated)]
    few = [count for count in counts if count is not None and count < 2 * size]
    if few and min(few) < FEWEST_OF_DISTRIBUTIONS:
        missing = f"not measured: {min(few)} images in a set, at least {FEWEST_OF_DISTRIBUTIONS} are needed"
        return Compared(name, None, None, None, "distance", missing)
    remarks = [indicative(f"{min(few)} images are fewer than twice the {size} features")] if few else []
    if None in counts:
        remarks.append(indicative("a file of statistics does not state the number of its images"))
    return Compared(name, value, None, None, "distance", "; ".join(filter(None, [*remarks, remark, NO_INTERVAL])))


def _score(logits: Tensor, seed: int) -> Compared:
    if len(logits) < FEWEST_OF_DISTRIBUTIONS:
        remark = f"not measured: {len(logits)} images, at least {FEWEST_OF_DISTRIBUTIONS} are needed"
        return Compared("inception_score", None, None, None, "score", remark)
    value = inception_score(logits)
    values = values_of_halves(logits, logits, lambda half, _: inception_score(half), seed)
    low, high = interval_of_halves(values, value)
    return Compared("inception_score", value, max(low, 1.0), high, "score", "of the generated images alone")


def _wavelets(real: Tensor, generated: Tensor, wavelets: WaveletPackets, seed: int) -> list[Compared]:
    (found,) = compare_features(real, generated, {"wavelet_distance": SetDistance(wavelet_distance)}, seed=seed)
    count = min(len(real), len(generated))
    if found.value is not None and count < 2 * wavelets.features:
        few = indicative(f"{count} images are fewer than twice the {wavelets.features} features of a packet")
        remark = f"{few}; {found.remark}"
        found = Compared(found.name, found.value, found.low, found.high, found.unit, remark)
    return [found]


def as_metrics(found: list[Compared], group: str, samples: int, note: str) -> list[Metric]:
    """Return metrics named GROUP/NAME with the remark and a common note."""
    return [
        Metric(
            f"{group}/{each.name}", each.value, each.low, each.high, each.unit, samples,
            note="; ".join(part for part in (each.remark, note) if part),
        )
        for each in found
    ]  # fmt: skip
