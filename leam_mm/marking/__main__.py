"""Marks of generated images: find them, write them, and make the key that signs them.

    python -m leam_mm.marking detect FILE...
    python -m leam_mm.marking mark drawn.png --output marked.png --model "our model 1.0"
    python -m leam_mm.marking make-key --output key.pem --name "Institute of Optics"
    python -m leam_mm.marking write-detector --codec RUN --shards SHARDS --output detector

Each command is a dataclass of options and a function in a file of its own. Nothing opens a connection.
"""

import logging
import sys
from collections.abc import Sequence

from leam_mm.command_line import Command, run_command
from leam_mm.errors import run
from leam_mm.marking.detect_command import DetectOptions, detect
from leam_mm.marking.make_key_command import MakeKeyOptions, write_key
from leam_mm.marking.mark_command import MarkOptions, mark_image

COMMANDS = {
    "detect": Command(DetectOptions, detect, ("files",)),
    "mark": Command(MarkOptions, mark_image, ("file",)),
    "make-key": Command(MakeKeyOptions, write_key),
}


def _with_training(words: Sequence[str]) -> dict[str, Command]:
    """Return all commands if help or the one that loads models is asked for: torch takes seconds."""
    if words and words[0] in COMMANDS:
        return COMMANDS
    from leam_mm.marking.write_detector_command import WriteDetectorOptions, write_detector

    return COMMANDS | {"write-detector": Command(WriteDetectorOptions, write_detector)}


def main(args: list[str] | None = None) -> None:
    """Run a command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    commands = _with_training(sys.argv[1:] if args is None else args)
    run_command(commands, __doc__, args)


if __name__ == "__main__":
    run(main)
