"""Training, validation and test images of probes, divided so that equal files never lie on two sides."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

VALIDATION = 0.2  # share of the training images of each class


@dataclass(frozen=True)
class ProbeData:
    """Embeddings that a probe is trained on, and those that it is tested on.

    Args:
        train: (N, D) float64 embeddings of length 1.
        train_label: (N,) classes from 0.
        train_digests: Digests of the training images' files.
        test: (B, D) float64 embeddings of length 1.
        test_label: (B,) classes from 0.
        test_keys: Names of the test images.
        classes: Class ids.
        note: How images were divided, in one sentence.
    """

    train: numpy.ndarray
    train_label: numpy.ndarray
    train_digests: Sequence[str]
    test: numpy.ndarray
    test_label: numpy.ndarray
    test_keys: Sequence[str]
    classes: Sequence[str]
    note: str


def divide_by_content(digests: Sequence[str], label: numpy.ndarray) -> tuple[list[int], list[int]]:
    """Return rows of training and of test images: half of the different files of each class, by their digests.

    Equal files lie on the same side. A file that stands in two classes is on neither.

    Args:
        digests: Digest of each image's file.
        label: (B,) class of each image.
    """
    classes = defaultdict(set)
    for digest, own in zip(digests, label.tolist(), strict=True):
        classes[digest].add(own)
    trained = set()
    for own in sorted(set(label.tolist())):
        different = sorted(digest for digest, found in classes.items() if found == {own})
        trained |= set(different[: len(different) // 2])
    rows = [row for row, digest in enumerate(digests) if len(classes[digest]) == 1]
    return [row for row in rows if digests[row] in trained], [row for row in rows if digests[row] not in trained]


def new_to_test(train_digests: Sequence[str], test_digests: Sequence[str]) -> list[int]:
    """Return the rows of training images whose files are not among the test images."""
    tested = set(test_digests)
    return [row for row, digest in enumerate(train_digests) if digest not in tested]


def validation_rows(digests: Sequence[str], label: numpy.ndarray) -> numpy.ndarray:
    """Return which training images choose the regularisation: (N,) bool, about a fifth of each class.

    Equal files lie on the same side; a class with one file keeps it for training.

    Args:
        digests: Digest of each training image's file.
        label: (N,) class of each training image.
    """
    # Of the digest's digest: the digests themselves may have divided training from test.
    order = [hashlib.sha256(f"validation {digest}".encode()).hexdigest() for digest in digests]
    chosen = set()
    for own in sorted(set(label.tolist())):
        different = sorted({order[row] for row in numpy.flatnonzero(label == own)})
        chosen |= set(different[: max(1, round(VALIDATION * len(different))) if len(different) > 1 else 0])
    return numpy.array([one in chosen for one in order], bool)
