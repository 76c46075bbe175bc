"""Kill a process that saves checkpoints in a loop at random moments, and read what it leaves: one line of JSON.

``python killed_saver.py FOLDER KILLS KIND``, where KIND is "synchronous" or "asynchronous".
"""

import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO
from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.checkpoint import EVIDENCE, read_checkpoint, sound_checkpoint
from leam_mm.files import remove_leftovers

LONGEST = 0.15  # seconds until a kill


def content(step: int) -> dict[str, Any]:
    state = {f"w{number}": torch.full((50_000,), float(step)) for number in range(10)}
    return {"state_dict": state, EVIDENCE: {"config": "model: {}", "samples_seen": step}, "global_step": step}


def save_for_ever(last: Path, step: int, complete: Path, asynchronous: bool) -> None:
    """Save step after step; the file ``complete`` holds the newest whose save is known to be complete."""
    writer = AsynchronousCheckpointIO() if asynchronous else RetriedCheckpointIO()
    known = os.open(complete, os.O_WRONLY | os.O_CREAT)
    while True:
        step += 1
        writer.save_checkpoint(content(step), last)
        os.pwrite(known, f"{step - asynchronous:09d}".encode(), 0)


def kill_in_turn(folder: Path, kills: int, asynchronous: bool) -> dict[str, Any]:
    last, complete, generator = folder / "last.ckpt", folder / "complete", random.Random(kills)
    found: dict[str, Any] = {"kills": 0, "in_the_middle": 0, "steps": 0}
    step = 0
    while found["kills"] < kills:
        child = os.fork()
        if child == 0:
            save_for_ever(last, step, complete, asynchronous)
        time.sleep(generator.uniform(0, LONGEST))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found["kills"] += 1
        found["in_the_middle"] += any(folder.glob("*.tmp-*"))
        remove_leftovers(folder, "*.ckpt")
        least = int(complete.read_text() or 0) if complete.exists() else 0
        sound = sound_checkpoint(last, replace=True)
        newest = 0 if sound is None else read_checkpoint(sound[0])["global_step"]
        assert newest >= max(least, step), f"step {newest} is left of {least}"
        if newest:
            state, wanted = read_checkpoint(last)["state_dict"], content(newest)["state_dict"]
            assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
        step = found["steps"] = newest
    found["files"] = sorted(file.name for file in folder.glob("*.ckpt"))
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    print(json.dumps(kill_in_turn(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "asynchronous")))
