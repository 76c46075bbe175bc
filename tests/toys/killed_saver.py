"""Kill a process that saves checkpoints in a loop at random moments, and read what it leaves: one line of JSON.

``python killed_saver.py FOLDER KILLS KIND``, where KIND is "synchronous", "asynchronous" or "parts" (of one rank).
"""

import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO
from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.checkpoint import EVIDENCE, read_checkpoint, sound_checkpoint
from leam_mm.optim.sharded_parts import save_parts
from toys.ranks import process_group


def content(step: int) -> dict[str, Any]:
    state = {f"w{number}": torch.full((50_000,), float(step)) for number in range(10)}
    return {"state_dict": state, EVIDENCE: {"config": "model: {}", "samples_seen": step}, "global_step": step}


def save_for_ever(last: Path, step: int, complete: Path, kind: str) -> None:
    """Save step after step; the file ``complete`` holds the newest whose save is known to be complete."""
    writer = AsynchronousCheckpointIO() if kind == "asynchronous" else RetriedCheckpointIO()
    known = os.open(complete, os.O_WRONLY | os.O_CREAT)
    with tempfile.TemporaryDirectory() as meeting, process_group(meeting) if kind == "parts" else nullcontext():
        while True:
            step, begin = step + 1, time.perf_counter()
            made = content(step)
            if kind == "parts":
                mesh = init_device_mesh("cpu", (1,))
                weights = made["state_dict"].items()
                made["state_dict"] = {name: DTensor.from_local(value, mesh, [Shard(0)]) for name, value in weights}
                save_parts(made, last.parent, writer)
            else:
                writer.save_checkpoint(made, last)
            os.pwrite(known, f"{step - (kind == 'asynchronous'):09d}".encode(), 0)
            os.pwrite(known, f" {time.perf_counter() - begin:012.6f} {os.getpid():09d}".encode(), 9)


def kill_in_turn(folder: Path, kills: int, kind: str) -> dict[str, Any]:
    last, complete, generator = folder / "last.ckpt", folder / "complete", random.Random(kills)
    found: dict[str, Any] = {"kills": 0, "in_the_middle": 0, "steps": 0}
    step = 0
    while found["kills"] < kills:
        child = os.fork()
        if child == 0:
            save_for_ever(last, step, complete, kind)
        seconds = 0.01
        if generator.random() < 0.8:  # else before the first save of this process is complete, perhaps
            while (
                not (words := complete.read_text().split() if complete.exists() else [])[2:] or int(words[2]) != child
            ):
                time.sleep(0.001)
            seconds = float(words[1])
        time.sleep(generator.uniform(0, 2.5 * seconds))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found["kills"] += 1
        found["in_the_middle"] += any(folder.glob("*.tmp-*"))
        for pattern in ("*.ckpt.tmp-*", "*.shards.tmp-*"):
            for left in folder.glob(pattern):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        least = int((complete.read_text().split() or ["0"])[0]) if complete.exists() else 0
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
    print(json.dumps(kill_in_turn(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
