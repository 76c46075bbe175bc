"""Vetting rule: of images with nearly the same embedding (other frames, other crops), keep the best one.

Follows SemDeDup (Abbas et al. 2303.09540): embeddings are clustered by k-means and compared within clusters only, so
that a million images need no trillion cosines. Two differences: each image is compared in its two nearest clusters,
since a pair may lie on both sides of a border; and the best image of a group stays, not the one farthest from the
centre.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from data_tools.vetting.duplicate_groups import Components, choose, preference
from data_tools.vetting.encoder_rule import EncoderRule
from data_tools.vetting.vetting_rule import Finding, Sample
from leam_mm.errors import UserError

BLOCK = 2048  # rows compared at once
TRAINED_ON = 128  # rows per cluster for k-means
ROUNDS = 10  # of k-means
CLUSTERS = 2  # clusters in which each row is compared


def centres(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return centres of spherical k-means on randomly drawn rows of (N, D), as (count, D) float32 of unit length."""
    generator = np.random.default_rng(seed)
    drawn = np.sort(generator.permutation(len(features))[: TRAINED_ON * count])
    rows = features[drawn].astype(np.float32)
    found = rows[generator.permutation(len(rows))[:count]]
    for _ in range(ROUNDS):
        nearest = np.concatenate([own[:, 0] for own in _nearest(rows, found, 1)])
        order = np.argsort(nearest, kind="stable")
        used, begin = np.unique(nearest[order], return_index=True)
        found[used] = np.add.reduceat(rows[order], begin, axis=0)  # a centre without rows does not move
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found


def _nearest(features: np.ndarray, found: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Give the numbers of the nearest centres of each row, (up to BLOCK, count), block by block."""
    for start in range(0, len(features), BLOCK):
        cosines = features[start : start + BLOCK].astype(np.float32) @ found.T
        yield np.argpartition(-cosines, min(count, len(found) - 1), axis=1)[:, :count]


def similar_pairs(
    features: np.ndarray, cosine: float, cluster_size: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give pairs of rows, (P,) and (P,), that share a cluster and whose embeddings have at least the given cosine.

    A pair that shares two clusters comes twice. Up to ``cluster_size`` rows, all pairs are compared.

    Args:
        features: (N, D) of unit length.
        cosine: Smallest cosine of a pair.
        cluster_size: Average number of rows in a cluster; larger clusters find more pairs and take proportionally
            longer.
        seed: Seed of the clustering.
    """
    count = -(-len(features) // cluster_size)
    if count <= 1:
        members = [np.arange(len(features))]
    else:
        found = centres(features, count, seed)
        nearest = np.concatenate(list(_nearest(features, found, min(CLUSTERS, count))))
        order = np.argsort(nearest.ravel(), kind="stable")
        begin = np.searchsorted(nearest.ravel()[order], np.arange(1, count))
        members = np.split(order // nearest.shape[1], begin)
    for rows in members:
        for start in range(0, len(rows), BLOCK):
            mine = features[rows[start : start + BLOCK]].astype(np.float32)
            for later in range(start, len(rows), BLOCK):
                others = features[rows[later : later + BLOCK]].astype(np.float32)
                first, second = np.nonzero(mine @ others.T >= cosine)
                new = first + start < second + later
                yield rows[first[new] + start], rows[second[new] + later]


class SemanticDuplicates(EncoderRule):
    """Drops images whose embedding is close to that of a better one: more pixels, then the key that sorts first.

    The meaning of a cosine differs between encoders: inspect what a strict threshold drops before you lower it. For a
    small CLIP trained on emoji, half of the pairs at 0.95 are different emoji (tests/benchmarks/near_duplicates.py).

    Args:
        teacher: Run or checkpoint of a contrastive model, or open_clip's folder or NAME:TAG.
        tokenizer: For open_clip's models, a folder or ``open_clip``; by default the teacher's.
        cosine: Smallest cosine, in (0, 1], of two images of which one suffices.
        cluster_size: Average number of images in a cluster; up to that many images, all pairs are compared.
        device: cpu or cuda.
    """

    name, across = "semantic_duplicates", True

    def __init__(
        self,
        teacher: str,
        tokenizer: str | None = None,
        cosine: float = 0.98,
        cluster_size: int = 4096,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        """See the class for the arguments."""
        if not 0 < cosine <= 1:
            raise UserError(f"SemanticDuplicates: cosine is {cosine}: give one above 0 and at most 1, such as 0.98")
        if cluster_size < 2:
            raise UserError(f"SemanticDuplicates: cluster_size is {cluster_size}: give at least 2, such as 4096")
        super().__init__(teacher, tokenizer, device)
        self.cosine, self.cluster_size = cosine, cluster_size

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Return embeddings of the images as they will be stored: (B, D') float16 of unit length."""
        return self.embed_images(samples)

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep the best image of each group; see ``duplicate_groups`` for chains of similar images."""
        components = Components(len(keys))
        for first, second in similar_pairs(measured, self.cosine, self.cluster_size):
            components.join(first, second)

        def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            parts = [
                np.einsum("pd,pd->p", *(measured[rows[at : at + BLOCK]].astype(np.float32) for rows in (first, second)))
                for at in range(0, len(first), BLOCK)
            ]
            return np.concatenate([np.zeros(0, np.float32), *parts])

        def similar(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return cosines(first, second) >= self.cosine - 1e-4  # rounding differs from that of the matrix product

        def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return 1 - cosines(first, second)

        foreign = np.array([bool(record.get("against")) for record in records])
        grouping = choose(components, preference(keys, records), similar, distance, foreign)
        near = cosines(np.arange(len(keys)), grouping.kept_by)
        found = []
        for row, best in enumerate(grouping.kept_by.tolist()):
            size, diameter = int(grouping.size[row]), round(float(grouping.diameter[row]), 3)
            group: dict[str, Any] = {"group": size, "diameter": diameter} if size > 1 else {}
            if best == row:
                found.append(Finding("alone" if size == 1 else f"best of {size}", evidence=group))
                continue
            evidence = {"kept": keys[best], **group} | ({"against": True} if foreign[best] else {})
            found.append(Finding(f"cosine {near[row]:.3f}", False, f"shows the same as {keys[best]}", evidence))
        return found
