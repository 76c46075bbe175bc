"""Text-image foundation models that one can answer for. Imports nothing; sets what libraries read when they load."""

import logging
import os

# Nothing phones home. Threads sleep at a barrier instead of spinning: a loader worker shares the trainer's cores, and a
# spinning thread keeps it from its turn (one training step on two busy cores: 2.8 instead of 14.9 ms a sample).
# A value set by the user wins.
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "DO_NOT_TRACK": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
# xformers complains at import when its kernels do not fit this torch; models/attention.py says in one line what runs.
logging.getLogger("xformers").setLevel(logging.ERROR)
