"""Vetting rule: of pictures that look the same (encoded again, resized, brighter, slightly cropped) the best one stays.

Two pictures look the same when their PDQ hashes are near and their colours agree. PDQ sees brightness at low
frequencies only, to which a red and a blue heart, or the flags of Hungary and of Sierra Leone, are one picture; 8 x 8
pixels in colour tell them apart. A hash of low quality is made of a nearly flat picture's noise: such pictures are not
left out, since half of a corpus of drawings may be of that kind; instead their pixels must agree much better.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from data_tools.vetting.binary_neighbours import distinct, pairs_within
from data_tools.vetting.duplicate_groups import Components, choose, preference
from data_tools.vetting.perceptual_hash import BYTES, TRANSFORMS, hamming, hash_text, pdq, pdq_turned, turned
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample
from leam_mm.errors import UserError

SIDE = 8  # of the small picture whose colours are compared
SMALL = SIDE * SIDE * 3
PALEST = 0.5  # contrast of a copy, as a share of the other's
FAINT = 0.15  # of its contrast, which may be left of a faint picture after a change of brightness or contrast
BLOCK = 8192  # pairs whose colours are compared at once


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


def faint_alike(first: np.ndarray, second: np.ndarray, levels: float) -> np.ndarray:
    """Whether nearly flat pictures agree, (P,) bool: as they are, or but for brightness alone or contrast alone.

    What is left may be ``levels``, and in the second case no more than FAINT of the contrast: faint pictures agree
    within a few levels whatever they show. Free to be moved in brightness as well as in contrast, all grey papers with
    the same faint mark would be one picture. Arguments as above.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    contrast = np.minimum(one.std(axis=1), other.std(axis=1))
    its, shared = np.square(one).mean(axis=1), (one * other).mean(axis=1)
    gain = np.clip(shared / np.maximum(its, 1e-6), PALEST, 1 / PALEST)
    brightness = np.sqrt(np.maximum(np.square(other).mean(axis=1) - 2 * gain * shared + gain**2 * its, 0))
    moved = one.mean(axis=1) - other.mean(axis=1)
    left = np.minimum(brightness / np.maximum(gain, 1), np.hypot(colour_difference(first, second), moved))
    return (pixel_difference(first, second) <= levels) | (left <= np.minimum(levels, FAINT * contrast))


class NearDuplicates(DatasetRule):
    """Drops pictures that look like a better one: more pixels, then more detail, then the first key.

    Args:
        radius: Bits, 0 to 100, in which hashes of copies may differ.
        quality: Hashes below it, in [0, 100], are not believed alone.
        colour: Levels by which colours may differ besides brightness and contrast; None does not look at colours
            (for believed hashes), so that drawings that differ in colour alone leave.
        flat: Levels by which pixels may differ where a hash is not believed, but for brightness or for contrast.
        transforms: Ways of ``perceptual_hash.TRANSFORMS`` in which a copy may be turned or mirrored.
        crops: Shares of the sides, in (0, 0.5), that a copy may lack around its middle, or have in excess as a frame;
            PDQ itself bears 2 %, so 0.04 and 0.08 find what lies between 2 and 10 %. Each entry of both lists costs
            one more hash per picture and one more search.
    """

    name, across = "near_duplicates", True

    def __init__(
        self,
        radius: int = 31,
        quality: int = 50,
        colour: float | None = 8.0,
        flat: float = 4.0,
        transforms: tuple[str, ...] = (),
        crops: tuple[float, ...] = (),
    ) -> None:
        """See the class for the arguments."""
        if not 0 <= radius <= 100:
            raise UserError(f"NearDuplicates: radius {radius} is no number of bits from 0 to 100; 31 is usual")
        unknown = [name for name in transforms if name not in TRANSFORMS[1:]]
        if unknown:
            raise UserError(f"NearDuplicates: transforms {unknown[0]!r} is none of {', '.join(TRANSFORMS[1:])}")
        if not all(0 < crop < 0.5 for crop in crops):
            raise UserError(
                f"NearDuplicates: crops {list(crops)} are not all shares between 0 and 0.5; try 0.04 and 0.08"
            )
        self.radius, self.quality, self.colour, self.flat = radius, quality, colour, flat
        self.transforms = sorted(set(transforms), key=TRANSFORMS.index)
        self.crops = sorted(set(crops))

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Hash, quality and small picture, hashes turned, hashes and small pictures cropped: (B, D) uint8."""
        return np.stack([self._measured(sample) for sample in samples])

    def _measured(self, sample: Sample) -> np.ndarray:
        code, quality = sample.pdq
        parts = [code, np.array([quality], np.uint8), small_picture(sample.pixels).ravel()]
        if self.transforms:
            codes, _ = pdq_turned(sample.pixels)
            parts += [codes[TRANSFORMS.index(name)] for name in self.transforms]
        height, width = sample.pixels.shape[:2]
        for crop in self.crops:
            top, left = round(height * crop / 2), round(width * crop / 2)
            inner = np.ascontiguousarray(sample.pixels[top : height - top, left : width - left])
            parts += [pdq(inner)[0], small_picture(inner).ravel()]
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


class View:
    """A way to look at every picture, such as turned or cropped: hashes (N, 32), and small pictures on demand."""

    def __init__(self, codes: np.ndarray, small: np.ndarray, order: np.ndarray | None = None) -> None:
        """Keep the columns; ``order`` says where the values of a turned small picture lie in the upright one."""
        self.codes, self._small, self._order = np.ascontiguousarray(codes), small, order

    def small(self, rows: np.ndarray) -> np.ndarray:
        """Small pictures of rows, (P, 192)."""
        return self._small[rows] if self._order is None else self._small[rows][:, self._order]


class Pictures:
    """What was measured, as a rule compares it.

    Args:
        rule: Its settings count.
        measured: (N, D) uint8.
    """

    def __init__(self, rule: NearDuplicates, measured: np.ndarray) -> None:
        """Take the columns apart; see the class for the arguments."""
        small = measured[:, BYTES + 1 : BYTES + 1 + SMALL]
        self.rule, self.quality = rule, np.array(measured[:, BYTES])
        self.upright = View(measured[:, :BYTES], small)
        self.codes = self.upright.codes
        self.views, at = [], BYTES + 1 + SMALL
        everything = turned(np.arange(SMALL).reshape(SIDE, SIDE, 3))
        for name in rule.transforms:
            order = everything[TRANSFORMS.index(name)].ravel()
            self.views.append(View(measured[:, at : at + BYTES], small, order))
            at += BYTES
        for _ in rule.crops:
            self.views.append(View(measured[:, at : at + BYTES], measured[:, at + BYTES : at + BYTES + SMALL]))
            at += BYTES + SMALL

    def pairs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of the given rows whose hashes are near, (P,) and (P,), some at a time."""
        codes = self.codes[rows]
        for pairs in pairs_within(codes, self.rule.radius):
            yield rows[pairs.first], rows[pairs.second]
        for view in self.views:
            for pairs in pairs_within(view.codes[rows], self.rule.radius, codes):
                apart = pairs.first != pairs.second  # many things look the same in a mirror
                yield rows[pairs.first[apart]], rows[pairs.second[apart]]

    def _ways(self, first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, View, View]]:
        """Distances, (P,), and the views of both, for each way that is looked at."""
        for own, its in ((self.upright, self.upright), *((view, self.upright) for view in self.views)):
            yield hamming(own.codes[first], its.codes[second]), own, its
            if own is not its:
                yield hamming(its.codes[first], own.codes[second]), its, own

    def alike(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether each pair of rows looks the same, (P,) bool."""
        found = [self._block(first[at : at + BLOCK], second[at : at + BLOCK]) for at in range(0, len(first), BLOCK)]
        return np.concatenate([np.zeros(0, bool), *found])

    def _block(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        same, rule = np.zeros(len(first), bool), self.rule
        for bits, own, its in self._ways(first, second):
            near = np.flatnonzero(bits <= rule.radius)
            one, other = own.small(first[near]), its.small(second[near])
            believed = np.minimum(self.quality[first[near]], self.quality[second[near]]) >= rule.quality
            agree = rule.colour is None or colour_difference(one, other) <= rule.colour
            same[near] |= np.where(believed, agree, faint_alike(one, other, rule.flat))
        return same

    def bits(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Smallest distance of each pair of rows, (P,), over the ways that are looked at."""
        return np.min([bits for bits, _, _ in self._ways(first, second)], axis=0)

    def compared(self, row: int, best: int) -> tuple[int, float]:
        """Bits and colour difference of two rows, in the way in which they are nearest."""
        first, second = np.array([row]), np.array([best])
        bits, own, its = min(self._ways(first, second), key=lambda way: int(way[0][0]))
        return int(bits[0]), float(colour_difference(own.small(first), its.small(second))[0])
