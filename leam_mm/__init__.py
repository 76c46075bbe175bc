"""Text-image foundation models that one can answer for. Imports nothing; switches off what would phone home."""

import os

# These are read when the libraries are first imported, so they must stand here; a value set by the user wins.
for _name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "NO_ALBUMENTATIONS_UPDATE", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
