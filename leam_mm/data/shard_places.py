"""Where the tars of a shard folder lie that only refers to them: ``tars.json``, written by index_shards.

``{"folders": ["../cc12m", "s3://bucket/laion"], "tars": {"laion-00000.tar": [1, "00000.tar"]}}``: a shard of the
manifest that is not listed under ``tars`` lies in the first folder under its own name. Paths are relative to the file.
"""

import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

TARS = "tars.json"


@dataclass(frozen=True)
class ShardPlaces:
    """The folders in which the tars lie.

    Args:
        folders: Paths relative to the shard folder, absolute paths, or addresses with ``://``.
        tars: For shards under another name, or in another folder than the first: number of the folder, and file name.
    """

    folders: list[str]
    tars: dict[str, tuple[int, str]] = field(default_factory=dict)

    def address(self, shard: str, base: str) -> str:
        """Return path or address of a tar; ``base`` is that of the shard folder."""
        number, name = self.tars.get(shard, (0, shard))
        folder = self.folders[number]
        if "://" in folder or folder.startswith("/"):
            return f"{folder.rstrip('/')}/{name}"
        scheme, mark, own = base.rpartition("://")  # object stores do not resolve ".."
        return f"{scheme}{mark}{posixpath.normpath(posixpath.join(own, folder))}/{name}" if mark else str(
            Path(base) / folder / name
        )  # fmt: skip

    def content(self) -> dict[str, object]:
        """Return the content of the file."""
        return {"folders": self.folders, "tars": {name: list(place) for name, place in self.tars.items()}}


def parse_places(content: bytes, where: str) -> ShardPlaces:
    """Parse the file, which may be hostile; ``where`` names it in messages."""
    try:
        found = parse_object(content)
        folders, tars = found.get("folders"), found.get("tars", {})
        if not isinstance(folders, list) or not folders or not all(isinstance(each, str) and each for each in folders):
            raise ValueError("folders is no list of paths")
        if not isinstance(tars, dict):
            raise ValueError("tars is no object")
        for place in tars.values():
            if not isinstance(place, list) or [type(part) for part in place] != [int, str]:
                raise ValueError(f"{str(place)[:80]} is no folder's number with a file name")
            if not 0 <= place[0] < len(folders) or Path(place[1]).name != place[1] or "\0" in place[1]:
                raise ValueError(f"{str(place)[:80]} leads to no tar of its folders")
        if any("\0" in folder for folder in folders):
            raise ValueError("a path of folders is none")
    except ValueError as error:
        raise UserError(f"{where} does not say where the tars are ({error}); index the tars again") from None
    return ShardPlaces(folders, {name: (place[0], place[1]) for name, place in tars.items()})
