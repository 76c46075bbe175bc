"""The split of the pictures: which are held out, and which may not be trained on since they look like one of those."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.vetting.held_out_images import look_alikes, read_folder_image
from data_tools.vetting.near_duplicates import NearDuplicates

ARTICLE = re.compile(r"(?:an?|the|some)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """An image that may be trained on or held out.

    Attributes:
        path: The drawn image.
        caption: English description.
        role: ``split`` to be divided, ``validation``, or ``train``.
    """

    path: Path
    caption: str
    role: str


def split_pictures(images: Sequence[Candidate], held_out: int, seed: int) -> tuple[dict[str, list[int]], int]:
    """Divide images so that no image is trained on that looks like a held-out one.

    Images of role ``split`` with equal English descriptions (articles aside) or of equal looks stay together; groups
    are drawn by the seed until ``held_out`` images are in ``test``. Of the other roles, those that look like a test
    image are left out, and so are images to train on that look like one of validation.

    Args:
        images: The images.
        held_out: Least number of test images, if there are so many.
        seed: Of the draw.

    Returns:
        Numbers of the images of ``train``, ``validation`` and ``test``, and the number of images left out.
    """
    alike = look_alikes([read_folder_image(image.path, RULE) for image in images], RULE)
    look = {number: group for group, numbers in enumerate(alike) for number in numbers}
    groups = _join(images, look)
    order = sorted(groups)
    random.Random(f"{seed}/pictures").shuffle(order)
    test: list[int] = []
    while order and len(test) < held_out:
        test += groups[order.pop()]
    chosen, seen = set(test), {look[number] for number in test}
    validation = [
        number for number, image in enumerate(images) if image.role == "validation" and look[number] not in seen
    ]
    apart = seen | {look[number] for number in validation}
    train = [
        number
        for number, image in enumerate(images)
        if image.role != "validation" and number not in chosen and look[number] not in apart
    ]
    random.Random(f"{seed}/order").shuffle(train)
    splits = {"train": train, "validation": validation, "test": sorted(test)}
    return splits, len(images) - sum(map(len, splits.values()))


# Small images of one drawing that was encoded anew differ in up to 50 bits; the corpus has no pair within 60 bits whose
# colours agree, so this wide radius loses no image.
RULE = NearDuplicates(radius=60, captions=False)


def _join(images: Sequence[Candidate], look: dict[int, int]) -> dict[str, list[int]]:
    """Return the numbers of images of role ``split`` by group, each named by its first English description."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    numbers = [number for number, image in enumerate(images) if image.role == "split"]
    names = {number: ARTICLE.sub("", images[number].caption.casefold(), count=1) for number in numbers}
    first: dict[int, str] = {}
    for number in numbers:
        one, other = root(names[number]), root(first.setdefault(look[number], names[number]))
        parent[max(one, other)] = min(one, other)
    groups: dict[str, list[int]] = {}
    for number in numbers:
        groups.setdefault(root(names[number]), []).append(number)
    return groups
