"""Search for a generator's text encoder and codec by their digests, after runs were moved or copied."""

import logging
from collections.abc import Iterator
from pathlib import Path

from leam_mm.captions.caption_encoders import encoder_file
from leam_mm.checkpoint_generations import LAST
from leam_mm.errors import UserError

MOST = 64  # files whose digests are computed
log = logging.getLogger(__name__)


def find_part(name: str, path: str, sha256: str, checkpoint: Path) -> Path:
    """Return where a part lies now.

    Runs beside the run of the generator are searched, and files beside its checkpoint; first those that have the name
    of the old path.

    Args:
        name: ``clip``, ``clip_1``, ... or ``codec``.
        path: Where it lay when the generator was trained.
        sha256: Its digest then.
        checkpoint: The generator's checkpoint file.

    Raises:
        UserError: It is in none of these places.
    """
    places = list(dict.fromkeys(_places(Path(path), checkpoint)))[:MOST]
    for place in places:
        try:
            found = encoder_file(place)[1]
        except (UserError, OSError):
            continue
        if found == sha256:
            log.info("%s of the generator is taken from %s, where it was moved from %s", name, place, path)
            return place
    option = name.partition("_")[0]
    searched = ", ".join(sorted({str(place.parent) for place in places})[:3]) or str(checkpoint.parent)
    raise UserError(
        f"the {name} of {checkpoint} is not at {path}, and none of {len(places)} candidates in {searched} has its "
        f"sha256 {sha256[:12]}: copy its run beside that of the generator, or name it with --{option}"
    )


def _places(old: Path, checkpoint: Path) -> Iterator[Path]:
    """Yield candidates, the likeliest first."""
    folder = checkpoint.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    for root in (run.parent, run, folder):
        yield root / old.name
        if old.suffix == ".ckpt" and len(old.parts) > 2:  # RUN/checkpoints/last.ckpt
            yield root / Path(*old.parts[-3:])
    for root in dict.fromkeys((run.parent, run, folder)):
        files = (file for file in root.glob("*.ckpt") if file.is_file())
        yield from sorted(file for file in files if not file.samefile(checkpoint))  # last.ckpt has a second name
        yield from sorted(file.parents[1] for file in root.glob(f"*/checkpoints/{LAST}"))
        yield from sorted(file.parent for file in root.glob("*/config.json"))
