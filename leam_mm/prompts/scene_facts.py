"""Facts about scenes of coloured shapes, decided from the objects of a scene: drawn ones, or those that were read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leam_mm.prompts.scene_reader import ReadObject, lies


@dataclass(frozen=True)
class SceneFact:
    """A fact that holds in a scene or does not.

    Without `count` and `relation`, it is that there is such an object.

    Args:
        colour: Colour of the objects meant; "" for any.
        shape: Their shape; "" for any.
        count: Exact number of such objects.
        relation: `left_of`, `right_of`, `above` or `below`: where such an object is, seen from the other one.
        other: Colour and shape of the other object of the relation.
    """

    colour: str = ""
    shape: str = ""
    count: int | None = None
    relation: str = ""
    other: tuple[str, str] = ("", "")

    def holds(self, objects: Sequence[ReadObject]) -> bool:
        """Return whether the fact holds for these objects."""
        meant = _such(objects, self.colour, self.shape)
        if self.count is not None:
            return len(meant) == self.count
        if self.relation:
            others = _such(objects, *self.other)
            return any(lies(a, b, self.relation) for a in meant for b in others if a is not b)
        return bool(meant)


def placed_objects(metadata: dict[str, Any]) -> list[ReadObject]:
    """Return the objects of a scene's metadata, as if they had been read from its image.

    Raises:
        ValueError: The metadata is not that of a scene.
    """
    try:
        return [
            ReadObject(str(item["colour"]), str(item["shape"]), float(item["x"]), float(item["y"]), 0.0, 1.0)
            for item in metadata["objects"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"metadata is not that of a scene ({type(error).__name__}: {error})") from None


def _such(objects: Sequence[ReadObject], colour: str, shape: str) -> list[ReadObject]:
    return [item for item in objects if colour in ("", item.colour) and shape in ("", item.shape)]
