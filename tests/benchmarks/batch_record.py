"""Records each batch of a run, ours or open_clip's: its samples and loss, one line a step.

Run as a program, it is the main function of open_clip_train 3.3.0 with its batches recorded. $BATCH_RECORD names
the file.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

CAPTION = "picture number {}"


def write(path: str, position: list[int], samples: list[int], loss: float) -> None:
    """Append a line; the file is closed before this returns, so that a kill does not lose it."""
    with open(path, "a") as file:
        file.write(json.dumps({"position": position, "samples": samples, "loss": loss.hex()}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a kill may leave an incomplete last one."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class BatchRecord(Callback):
    """Recorder of our runs: one file a rank."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step that was made."""
        samples = [int(key) for key in batch["key"]]
        path = f"{os.environ['BATCH_RECORD']}.{trainer.global_rank}"
        write(path, [trainer.global_step - 1], samples, outputs["loss"].item())


def peer(words: list[str]) -> None:
    """open_clip_train's main, from its parsing of arguments to its last checkpoint."""
    import open_clip
    import open_clip_train.main as program
    from open_clip_peer import skip_nameless_entries

    skip_nameless_entries()
    open_clip.add_model_config(Path(os.environ["PEER_MODEL"]))
    tokens = open_clip.get_tokenizer(Path(os.environ["PEER_MODEL"]).stem)(
        [CAPTION.format(number) for number in range(int(os.environ["PEER_SAMPLES"]))]
    )
    number = {tuple(row): place for place, row in enumerate(tokens.tolist())}
    now: dict[str, Any] = {}

    def make_model(*args: Any, **named: Any) -> Any:
        model, *transforms = open_clip.create_model_and_transforms(*args, **named)

        def keep(_: Any, inputs: Any) -> None:
            now["samples"] = [number[tuple(row)] for row in inputs[1].tolist()]

        model.register_forward_pre_hook(keep)
        return (model, *transforms)

    def make_loss(args: Any) -> Any:
        loss = open_clip.create_loss(args)

        def note(_: Any, inputs: Any, output: Any) -> None:
            total = float(sum(value.detach() for value in output.values()))
            write(os.environ["BATCH_RECORD"], [now["epoch"], now["batch"]], now["samples"], total)
            now["batch"] += 1

        loss.register_forward_hook(note)
        return loss

    train = program.train_one_epoch

    def train_one_epoch(model: Any, data: Any, loss: Any, epoch: int, *args: Any, **named: Any) -> Any:
        now.update(epoch=epoch, batch=0)
        return train(model, data, loss, epoch, *args, **named)

    program.create_model_and_transforms, program.create_loss = make_model, make_loss
    program.train_one_epoch = train_one_epoch
    program.main(words)


if __name__ == "__main__":
    peer(sys.argv[1:])
