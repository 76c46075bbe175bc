"""Training of text-image foundation models. Importing it only sets environment variables that libraries read."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from leam_mm.arithmetic import set_mode

# No telemetry and no downloads, and no threads in loader workers. A value set by the user wins.
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# ``python -m leam_mm.release`` puts the current folder first on the path. In the folder of a stranger's checkpoint, a
# file such as yaml.py would then stand in for a library. The folder of this package may stay.
if sys.argv[:1] == ["-m"] and Path(sys.path[0]).resolve() == Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
set_mode()
# xformers warns at import if its kernels do not fit this torch; denoisers/attention.py logs which kernel runs.
logging.getLogger("xformers").setLevel(logging.ERROR)


def load(address: str | Path, part: str | None = None) -> Any:
    """Load a trained model: ``leam_mm.load("runs/quickstart/clip")``.

    Args:
        address: Run folder, checkpoint, release, folder of open_clip or diffusers, or ``NAME:TAG`` of open_clip.
        part: ``encoder``, ``generator`` or ``codec``, for a release with several; None takes the only one.

    Returns:
        A module in eval mode on the CPU; see leam_mm/model_address.py.
    """
    from leam_mm.model_address import load as load_model  # imports torch

    return load_model(address, part)  # type: ignore[arg-type]
