"""Vetting rule: of images that look the same (encoded again, resized, brighter, slightly cropped), keep the best one.

Two images look the same if their PDQ hashes are near and their colours agree. PDQ uses the low frequencies of the
brightness only, in which a red and a blue heart, or the flags of Hungary and Sierra Leone, are equal; thumbnails of
8 x 8 pixels in colour distinguish them. The hash of a nearly flat image is mostly noise, and its quality is low. Such
images are not skipped, since they may be half of a corpus of drawings; instead, their thumbnails must agree closely.

Flags and clocks look alike and mean different things. Two images whose captions differ (see caption_words.py) both stay
unless their thumbnails are equal to SAME levels, as those of one image that was encoded or resized again.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from data_tools.vetting.binary_neighbours import distinct, pairs_within
from data_tools.vetting.caption_words import WIDTH, caption_words, captions_differ
from data_tools.vetting.duplicate_groups import Components, choose, preference
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample
from leam_mm.data.perceptual_hash import BYTES, TRANSFORMS, hamming, hash_text, pdq, pdq_transformed, transformed
from leam_mm.errors import UserError

SIDE = 8  # side of the thumbnails whose colours are compared
THUMBNAIL = SIDE * SIDE * 3  # their values
MIN_CONTRAST = 0.5  # smallest contrast of a copy, relative to the other image
MAX_RESIDUAL = 0.15  # of nearly flat images after a change of brightness or contrast, relative to their contrast
SAME = 12  # levels between thumbnails of one image; four photographs at 128 px and JPEG quality 40 and above reach 10
BLOCK = 8192  # pairs whose colours are compared at once


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Return the mean colours of a grid over an image (H, W, 3) uint8, as (8, 8, 3) uint8."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=8.0))


def colour_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of thumbnails, (P,), after the best change of brightness and contrast.

    The three channels share one offset and one gain (least squares, from half to double the contrast), so a copy may be
    darker or paler, but not bluer, blank or inverted.

    Args:
        first: Thumbnails (P, 192), levels 0 to 255.
        second: Thumbnails (P, 192) to compare with.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    variance, its = np.square(one).mean(axis=1), np.square(other).mean(axis=1)
    more, less, shared = np.maximum(variance, its), np.minimum(variance, its), (one * other).mean(axis=1)
    gain = np.clip(shared / np.maximum(more, 1e-12), MIN_CONTRAST, 1)
    return np.sqrt(np.maximum(less - 2 * gain * shared + gain**2 * more, 0))


def pixel_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of thumbnails, (P,) in levels; arguments of ``colour_difference``."""
    return np.sqrt(np.square(first.astype(np.float32) - second).mean(axis=1))


def flat_images_agree(first: np.ndarray, second: np.ndarray, levels: float) -> np.ndarray:
    """Return whether nearly flat images agree, (P,) bool: as they are, or after a change of brightness or contrast.

    The remaining difference may be ``levels``, and after a change at most MAX_RESIDUAL of the contrast: nearly flat
    images differ by a few levels only, whatever they show. Brightness and contrast may not change together, since then
    all grey pages with the same faint mark would agree. Further arguments of ``colour_difference``.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    contrast = np.minimum(one.std(axis=1), other.std(axis=1))
    its, shared = np.square(one).mean(axis=1), (one * other).mean(axis=1)
    gain = np.clip(shared / np.maximum(its, 1e-6), MIN_CONTRAST, 1 / MIN_CONTRAST)
    brightness = np.sqrt(np.maximum(np.square(other).mean(axis=1) - 2 * gain * shared + gain**2 * its, 0))
    moved = one.mean(axis=1) - other.mean(axis=1)
    residual = np.minimum(brightness / np.maximum(gain, 1), np.hypot(colour_difference(first, second), moved))
    return (pixel_difference(first, second) <= levels) | (residual <= np.minimum(levels, MAX_RESIDUAL * contrast))


class NearDuplicates(DatasetRule):
    """Drops images that look like a better one: more pixels, then more detail, then the key that sorts first.

    Args:
        radius: Largest number of bits, 0 to 100, in which the hashes of copies differ.
        quality: Smallest quality, in [0, 100], of a hash that is trusted; others need agreeing thumbnails.
        colour: Levels by which colours may differ after a change of brightness and contrast; None ignores the colours
            (for trusted hashes), which drops drawings that differ in colour only.
        flat: Levels by which thumbnails may differ if a hash is not trusted, after a change of brightness or contrast.
        transforms: Rotations and reflections of copies, from ``perceptual_hash.TRANSFORMS``.
        crops: Shares of the sides, in (0, 0.5), that a copy lacks at its borders or has in excess as a frame. PDQ
            itself tolerates 2 %; 0.04 and 0.08 find crops between 2 and 10 %. Each entry of both lists costs one more
            hash per image and one more search.
        captions: Whether images with different captions both stay; False drops one of them, as suits web pages, which
            give the same image many captions. A copy of an image of another data set never stays.
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
        captions: bool = True,
    ) -> None:
        """See the class for the arguments."""
        if not 0 <= radius <= 100:
            raise UserError(f"NearDuplicates: radius is {radius}: give 0 to 100 bits, usually 31")
        unknown = [name for name in transforms if name not in TRANSFORMS[1:]]
        if unknown:
            raise UserError(f"NearDuplicates: transforms {unknown[0]!r} is none of {', '.join(TRANSFORMS[1:])}")
        if not all(0 < crop < 0.5 for crop in crops):
            raise UserError(
                f"NearDuplicates: crops are {list(crops)}: give shares between 0 and 0.5, such as 0.04 and 0.08"
            )
        self.radius, self.quality, self.colour, self.flat = radius, quality, colour, flat
        self.transforms = sorted(set(transforms), key=TRANSFORMS.index)
        self.crops = sorted(set(crops))
        self.captions = captions

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Return hash, quality, thumbnail, hashes of transforms, hashes and thumbnails of crops, words of captions."""
        return np.stack([self._measure(sample) for sample in samples])

    def _measure(self, sample: Sample) -> np.ndarray:
        code, quality = sample.pdq
        parts = [code, np.array([quality], np.uint8), thumbnail(sample.pixels).ravel()]
        if self.transforms:
            codes, _ = pdq_transformed(sample.pixels)
            parts += [codes[TRANSFORMS.index(name)] for name in self.transforms]
        height, width = sample.pixels.shape[:2]
        for crop in self.crops:
            top, left = round(height * crop / 2), round(width * crop / 2)
            inner = np.ascontiguousarray(sample.pixels[top : height - top, left : width - left])
            parts += [pdq(inner)[0], thumbnail(inner).ravel()]
        if self.captions:
            parts.append(caption_words(sample.captions))
        return np.concatenate(parts)

    def components(self, measured: np.ndarray) -> Components:
        """Return the groups of images that look the same, of what ``measure`` returned: (N, D)."""
        images, components = MeasuredImages(self, measured), Components(len(measured))
        pixels = np.ascontiguousarray(measured[:, :-WIDTH]) if self.captions else measured
        first, index = distinct(pixels)  # equal measurements need no comparison
        components.join(first[index], np.arange(len(measured)))
        for one, other in images.pairs(first):
            new = components.find(one) != components.find(other)
            one, other = one[new], other[new]
            near = images.similar(one, other)
            components.join(one[near], other[near])
        return components

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep the best image of each group; see ``duplicate_groups`` for chains of similar images."""
        images, components = MeasuredImages(self, measured), self.components(measured)
        foreign = np.array([bool(record.get("against")) for record in records])
        rank = preference(keys, records, images.quality)

        def redundant(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            near = images.similar(first, second)
            if self.captions:
                near &= foreign[first] | images.same(first, second) | ~images.captions_differ(first, second)
            return near

        grouping = choose(components, rank, redundant, images.bits, foreign)
        alike = self._kept_alike(components, rank, images, grouping.kept_by)
        return [
            self._finding(row, keys, records, images, best, size, diameter, alike.get(row))
            for row, (best, size, diameter) in enumerate(
                zip(grouping.kept_by.tolist(), grouping.size.tolist(), grouping.diameter.tolist(), strict=True)
            )
        ]

    def _kept_alike(
        self, components: Components, rank: np.ndarray, images: "MeasuredImages", kept_by: np.ndarray
    ) -> dict[int, int]:
        """Return the rows that stay for their captions only, each with the best row of its group."""
        found: dict[int, int] = {}
        for rows in components.groups() if self.captions else ():
            kept = rows[kept_by[rows] == rows]
            best = int(kept[np.argmin(rank[kept])])
            others = kept[kept != best]
            near = images.similar(np.full(len(others), best), others)
            found |= dict.fromkeys(others[near].tolist(), best)
        return found

    def _finding(
        self,
        row: int,
        keys: list[str],
        records: list[dict[str, Any]],
        images: "MeasuredImages",
        best: int,
        size: int,
        diameter: float,
        alike: int | None,
    ) -> Finding:
        quality = int(images.quality[row])
        record = {"pdq": hash_text(images.codes[row]), "pdq_quality": quality}
        group = {"group": size, "diameter": int(diameter)} if size > 1 else {}
        if best == row and alike is not None:
            bits, colour = images.nearest_view(row, alike)
            looks = {"looks_like": keys[alike], "bits": bits, "colour": round(colour, 1), **group}
            return Finding(f"{bits} bits, other caption", evidence=looks | {"quality": quality}, record=record)
        if best == row:
            return Finding(f"quality {quality}", evidence=group, record=record)
        bits, colour = images.nearest_view(row, best)
        evidence: dict[str, Any] = {"kept": keys[best], "bits": bits, "colour": round(colour, 1), **group}
        evidence |= {"quality": quality} | ({"against": True} if records[best].get("against") else {})
        return Finding(f"{bits} bits", False, f"looks like {keys[best]}", evidence)


class View:
    """All images in one orientation or crop: hashes (N, 32), and thumbnails."""

    def __init__(self, codes: np.ndarray, thumbnails: np.ndarray, order: np.ndarray | None = None) -> None:
        """Store the columns; ``order`` maps the values of a rotated thumbnail to those of the upright one."""
        self.codes, self._thumbnails, self._order = np.ascontiguousarray(codes), thumbnails, order

    def thumbnails(self, rows: np.ndarray) -> np.ndarray:
        """Return the thumbnails of rows, (P, 192)."""
        return self._thumbnails[rows] if self._order is None else self._thumbnails[rows][:, self._order]


class MeasuredImages:
    """Compares images by what a rule measured of them.

    Args:
        rule: The rule, for its settings.
        measured: (N, D) uint8, see ``NearDuplicates.measure``.
    """

    def __init__(self, rule: NearDuplicates, measured: np.ndarray) -> None:
        """Split the columns; see the class for the arguments."""
        thumbnails = measured[:, BYTES + 1 : BYTES + 1 + THUMBNAIL]
        self.rule, self.quality = rule, np.array(measured[:, BYTES])
        self.upright = View(measured[:, :BYTES], thumbnails)
        self.codes = self.upright.codes
        self._words = measured[:, -WIDTH:]
        self.views, at = [], BYTES + 1 + THUMBNAIL
        orders = transformed(np.arange(THUMBNAIL).reshape(SIDE, SIDE, 3))
        for name in rule.transforms:
            order = orders[TRANSFORMS.index(name)].ravel()
            self.views.append(View(measured[:, at : at + BYTES], thumbnails, order))
            at += BYTES
        for _ in rule.crops:
            self.views.append(View(measured[:, at : at + BYTES], measured[:, at + BYTES : at + BYTES + THUMBNAIL]))
            at += BYTES + THUMBNAIL

    def pairs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give pairs of the given rows whose hashes are near, (P,) and (P,), block by block."""
        codes = self.codes[rows]
        for pairs in pairs_within(codes, self.rule.radius):
            yield rows[pairs.first], rows[pairs.second]
        for view in self.views:
            for pairs in pairs_within(view.codes[rows], self.rule.radius, codes):
                apart = pairs.first != pairs.second  # many images are symmetric
                yield rows[pairs.first[apart]], rows[pairs.second[apart]]

    def _view_pairs(self, first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, View, View]]:
        """Give distances, (P,), and the views of both images, for each pair of views that is compared."""
        yield hamming(self.codes[first], self.codes[second]), self.upright, self.upright
        for view in self.views:
            yield hamming(view.codes[first], self.codes[second]), view, self.upright
            yield hamming(self.codes[first], view.codes[second]), self.upright, view

    def similar(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return whether each pair of rows looks the same, (P,) bool."""
        found = [self._similar(first[at : at + BLOCK], second[at : at + BLOCK]) for at in range(0, len(first), BLOCK)]
        return np.concatenate([np.zeros(0, bool), *found])

    def _similar(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        same, rule = np.zeros(len(first), bool), self.rule
        for bits, one_view, other_view in self._view_pairs(first, second):
            near = np.flatnonzero(bits <= rule.radius)
            one, other = one_view.thumbnails(first[near]), other_view.thumbnails(second[near])
            trusted = np.minimum(self.quality[first[near]], self.quality[second[near]]) >= rule.quality
            agree = rule.colour is None or colour_difference(one, other) <= rule.colour
            same[near] |= np.where(trusted, agree, flat_images_agree(one, other, rule.flat))
        return same

    def same(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return whether no part of the thumbnails of each pair of rows differs by more than SAME levels, (P,) bool."""
        one, other = (self.upright.thumbnails(rows).astype(np.int16) for rows in (first, second))
        return np.abs(one - other).max(axis=1, initial=0) <= SAME

    def captions_differ(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return whether the captions of each pair of rows differ, (P,) bool."""
        parts = [slice(at, at + BLOCK) for at in range(0, len(first), BLOCK)]
        found = [captions_differ(self._words[first[part]], self._words[second[part]]) for part in parts]
        return np.concatenate([np.zeros(0, bool), *found])

    def bits(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the smallest distance of each pair of rows, (P,), over all views."""
        return np.min([bits for bits, _, _ in self._view_pairs(first, second)], axis=0)

    def nearest_view(self, row: int, best: int) -> tuple[int, float]:
        """Return the distance in bits and the colour difference of two rows, in the views in which they are nearest."""
        first, second = np.array([row]), np.array([best])
        bits, one, other = min(self._view_pairs(first, second), key=lambda found: int(found[0][0]))
        return int(bits[0]), float(colour_difference(one.thumbnails(first), other.thumbnails(second))[0])
