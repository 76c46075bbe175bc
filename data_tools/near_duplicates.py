"""Vetting rule: of pictures that look the same (encoded again, resized, brighter, slightly cropped) the best one stays.

Two pictures look the same when their PDQ hashes are near and their colours agree. PDQ sees brightness at low
frequencies only, to which a red and a blue heart, or the flags of Hungary and of Sierra Leone, are one picture; 8 x 8
pixels in colour tell them apart. A hash of low quality is made of a nearly flat picture's noise: such pictures are not
left out, since half of a corpus of drawings may be of that kind; instead their pixels must agree, brightness included.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from data_tools.binary_neighbours import distinct, pairs_within
from data_tools.duplicate_groups import Components, choose, preference
from data_tools.perceptual_hash import BYTES, TRANSFORMS, hamming, hash_text, pdq_turned, turned
from data_tools.vetting import DatasetRule, Finding, Sample
from leam_mm.errors import UserError

SIDE = 8  # of the small picture whose colours are compared
SMALL = SIDE * SIDE * 3
PALEST = 0.5  # contrast of a copy, as a share of the other's
BLOCK = 8192  # pairs whose colours are compared at once
Way = tuple[np.ndarray, np.ndarray, np.ndarray]


def small_picture(pixels: np.ndarray) -> np.ndarray:
    """Mean colours of a grid over the picture, (8, 8, 3) uint8, from (H, W, 3) uint8."""
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=8.0))


def colour_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root mean square, (P,), of what is left between small pictures when one is made brighter or of other contrast.

    The three channels share one offset and one gain (least squares, from half to double the contrast), so a copy may be
    darker or paler, but not bluer, not empty, and no negative.

    Args:
        first: (P, 192), levels 0 to 255.
        second: The same.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    variance, its = np.square(one).mean(axis=1), np.square(other).mean(axis=1)
    more, less, shared = np.maximum(variance, its), np.minimum(variance, its), (one * other).mean(axis=1)
    gain = np.clip(shared / np.maximum(more, 1e-12), PALEST, 1)
    return np.sqrt(np.maximum(less - 2 * gain * shared + gain**2 * more, 0))


def pixel_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Root mean square difference of small pictures as they are, (P,) in levels; arguments as above."""
    return np.sqrt(np.square(first.astype(np.float32) - second).mean(axis=1))


class NearDuplicates(DatasetRule):
    """Drops pictures that look like a better one: more pixels, then more detail, then the first key.

    Args:
        radius: Bits, 0 to 100, in which hashes of copies may differ.
        quality: Hashes below it, in [0, 100], are not believed alone.
        colour: Levels by which colours may differ besides brightness and contrast; None does not look at colours
            (for believed hashes), so that drawings that differ in colour alone leave.
        flat: Levels by which pixels may differ where a hash is not believed.
        transforms: Ways of ``perceptual_hash.TRANSFORMS`` in which a copy may be turned or mirrored; each costs a
            hash per picture and one more search.
    """

    name, across = "near_duplicates", True

    def __init__(
        self,
        radius: int = 31,
        quality: int = 50,
        colour: float | None = 8.0,
        flat: float = 4.0,
        transforms: tuple[str, ...] = (),
    ) -> None:
        """See the class for the arguments."""
        if not 0 <= radius <= 100:
            raise UserError(f"NearDuplicates: radius {radius} is no number of bits from 0 to 100; 31 is usual")
        unknown = [name for name in transforms if name not in TRANSFORMS[1:]]
        if unknown:
            raise UserError(f"NearDuplicates: transforms {unknown[0]!r} is none of {', '.join(TRANSFORMS[1:])}")
        self.radius, self.quality, self.colour, self.flat = radius, quality, colour, flat
        self.transforms = sorted(set(transforms), key=TRANSFORMS.index)

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Hash, quality and small picture, then the hashes of the turned picture: (B, 225 + 32 T) uint8."""
        return np.stack([self._measured(sample) for sample in samples])

    def _measured(self, sample: Sample) -> np.ndarray:
        code, quality = sample.pdq
        parts = [code, np.array([quality], np.uint8), small_picture(sample.pixels).ravel()]
        if self.transforms:
            codes, _ = pdq_turned(sample.pixels)
            parts += [codes[TRANSFORMS.index(name)] for name in self.transforms]
        return np.concatenate(parts)

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep the best of what looks the same; the guard against chains is that of ``duplicate_groups``."""
        pictures = Pictures(self, measured)
        components = Components(len(keys))
        first, place = distinct(measured)  # the same in all that is looked at: no need to compare
        components.join(first[place], np.arange(len(keys)))
        for one, other in pictures.pairs(first):
            new = components.find(one) != components.find(other)
            one, other = one[new], other[new]
            near = pictures.alike(one, other)
            components.join(one[near], other[near])
        foreign = np.array([bool(record.get("against")) for record in records])
        rank = preference(keys, records, pictures.quality)
        grouping = choose(components, rank, pictures.alike, pictures.bits, foreign)
        return [
            self._finding(row, keys, records, pictures, best, size, diameter)
            for row, (best, size, diameter) in enumerate(
                zip(grouping.kept_by.tolist(), grouping.size.tolist(), grouping.diameter.tolist(), strict=True)
            )
        ]

    def _finding(
        self,
        row: int,
        keys: list[str],
        records: list[dict[str, Any]],
        pictures: "Pictures",
        best: int,
        size: int,
        diameter: float,
    ) -> Finding:
        quality = int(pictures.quality[row])
        record = {"pdq": hash_text(pictures.codes[row]), "pdq_quality": quality}
        group = {"group": size, "diameter": int(diameter)} if size > 1 else {}
        if best == row:
            return Finding(f"quality {quality}", evidence=group, record=record)
        bits, colour = pictures.compared(row, best)
        evidence: dict[str, Any] = {"kept": keys[best], "bits": bits, "colour": round(colour, 1), **group}
        evidence |= {"quality": quality} | ({"against": True} if records[best].get("against") else {})
        return Finding(f"{bits} bits", False, f"looks like {keys[best]}", evidence)


class Pictures:
    """What was measured, as a rule compares it.

    Args:
        rule: Its settings count.
        measured: (N, 225 + 32 T) uint8.
    """

    def __init__(self, rule: NearDuplicates, measured: np.ndarray) -> None:
        """Take the columns apart; see the class for the arguments."""
        self.rule, self.small = rule, measured[:, BYTES + 1 : BYTES + 1 + SMALL]
        self.codes, self.quality = np.ascontiguousarray(measured[:, :BYTES]), np.array(measured[:, BYTES])
        rest = measured[:, BYTES + 1 + SMALL :]
        self.turned = [
            np.ascontiguousarray(rest[:, BYTES * place : BYTES * (place + 1)]) for place in range(len(rule.transforms))
        ]
        everything = np.arange(SMALL).reshape(SIDE, SIDE, 3)
        self.orders = [turned(everything)[TRANSFORMS.index(name)].ravel() for name in rule.transforms]

    def pairs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of the given rows whose hashes are near, (P,) and (P,), some at a time."""
        codes = self.codes[rows]
        for pairs in pairs_within(codes, self.rule.radius):
            yield rows[pairs.first], rows[pairs.second]
        for other in self.turned:
            for pairs in pairs_within(other[rows], self.rule.radius, codes):
                apart = pairs.first != pairs.second  # many things look the same in a mirror
                yield rows[pairs.first[apart]], rows[pairs.second[apart]]

    def _ways(self, first: np.ndarray, second: np.ndarray) -> Iterator[Way]:
        """Distances, (P,), and how the small pictures of both lie, for each way that is looked at."""
        upright = np.arange(SMALL)
        yield hamming(self.codes[first], self.codes[second]), upright, upright
        for codes, order in zip(self.turned, self.orders, strict=True):
            yield hamming(codes[first], self.codes[second]), order, upright
            yield hamming(self.codes[first], codes[second]), upright, order

    def alike(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether each pair of rows looks the same, (P,) bool."""
        found = [self._block(first[at : at + BLOCK], second[at : at + BLOCK]) for at in range(0, len(first), BLOCK)]
        return np.concatenate([np.zeros(0, bool), *found])

    def _block(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        same = np.zeros(len(first), bool)
        for bits, own, its in self._ways(first, second):
            near = np.flatnonzero(bits <= self.rule.radius)
            one, other = self.small[first[near]][:, own], self.small[second[near]][:, its]
            believed = np.minimum(self.quality[first[near]], self.quality[second[near]]) >= self.rule.quality
            agree = pixel_difference(one, other) <= self.rule.flat
            agree |= believed & (self.rule.colour is None or colour_difference(one, other) <= self.rule.colour)
            same[near] |= agree
        return same

    def bits(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Smallest distance of each pair of rows, (P,), over the ways that are looked at."""
        return np.min([bits for bits, _, _ in self._ways(first, second)], axis=0)

    def compared(self, row: int, best: int) -> tuple[int, float]:
        """Bits and colour difference of two rows, in the way in which they are nearest."""
        bits, own, its = min(self._ways(np.array([row]), np.array([best])), key=lambda way: int(way[0][0]))
        return int(bits[0]), float(colour_difference(self.small[[row]][:, own], self.small[[best]][:, its])[0])
