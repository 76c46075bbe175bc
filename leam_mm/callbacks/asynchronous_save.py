"""Checkpoints written in the background: training waits for a copy in memory, a thread hashes and writes the file.

The state is copied to buffers on the CPU that are kept from save to save (pinned memory for a GPU), which takes as much
memory as the checkpoint. The thread then writes the same bytes as a save in step with training: hashing and writing
release Python's lock. One save at a time is under way, and the older checkpoints stay until it is complete.
"""

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.system_fault import fault_line, system_fault


class HostCopy:
    """Copies of a state in buffers on the CPU, which the next copy of an equal layout uses again."""

    def __init__(self) -> None:
        """Start without buffers."""
        self._buffers: list[Tensor] = []

    def __call__(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return a copy that shares nothing with ``content``; it is valid until the next call.

        Tensors that share memory do so in the copy as well, so that torch.save writes the same bytes.
        """
        copies: dict[int, Any] = {}  # of copy.deepcopy: what stands for an object of this id
        places: dict[tuple[torch.device, int], Tensor] = {}
        tensors: list[Tensor] = []
        _collect(content, tensors)
        on_gpu = False
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = tensor.device, storage.data_ptr()
            if place not in places:
                source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                places[place] = self._buffer(len(places), source)
                places[place].copy_(source, non_blocking=tensor.is_cuda)
                on_gpu |= tensor.is_cuda
            kept = torch.empty(0, dtype=tensor.dtype)
            kept.set_(places[place].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
            copies[id(tensor)] = kept.requires_grad_(tensor.requires_grad)
        if on_gpu:
            torch.cuda.synchronize()
        del self._buffers[len(places) :]
        return copy.deepcopy(content, copies)

    def _buffer(self, number: int, source: Tensor) -> Tensor:
        if number < len(self._buffers) and self._buffers[number].numel() == source.numel():
            return self._buffers[number]
        made = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=source.is_cuda)
        self._buffers[number : number + 1] = [made]
        return made


def _collect(content: Any, found: list[Tensor]) -> None:
    """Append the plain tensors of nested dicts, lists and tuples; deepcopy itself copies all others."""
    if isinstance(content, dict):
        for value in content.values():
            _collect(value, found)
    elif isinstance(content, list | tuple):
        for value in content:
            _collect(value, found)
    elif type(content) is Tensor and content.layout == torch.strided and not (content.is_conj() or content.is_neg()):
        found.append(content)


class AsynchronousCheckpointIO(RetriedCheckpointIO):
    """Checkpoint writer that lets training go on while the file is written.

    A fault of the background write is a warning; the next save tries again, and the older checkpoints stay.

    Args:
        keep: As of `AtomicCheckpointIO`.
        patience: Longest wait for the save before, in seconds. After it the new checkpoint is written in step with
            training, once the save before has ended.
    """

    def __init__(self, keep: int = 2, patience: float = 60.0) -> None:
        """See the class for the arguments."""
        super().__init__(keep)
        self.patience = patience
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Copy the state and start to write it."""
        super_save = super().save_checkpoint
        self.begin(checkpoint, lambda held: super_save(held, path, storage_options))

    def begin(self, content: Any, work: Callable[[Any], None], agree: Callable[[bool], bool] = bool) -> None:
        """Copy the content and start a thread that does the work, unless the save before is late on any rank."""
        if agree(not self.finish(self.patience)):
            rank_zero_warn(
                f"the checkpoint before is still being written after {self.patience:g} s: training waits, and this one "
                "is written in step with it; save less often, or to a faster disk"
            )
            self.finish()
            work(content)
            return
        try:
            thread = threading.Thread(target=self._work, args=(work, self._copy(content)), name="checkpoint")
            thread.start()
            self._thread = thread
        except (MemoryError, RuntimeError, OSError) as error:
            if system_fault(error) is None:
                raise
            self._copy = HostCopy()  # frees its memory
            rank_zero_warn(f"this checkpoint is written in step with training: {fault_line(error)}")
            work(content)

    def _work(self, work: Callable[[Any], None], held: Any) -> None:
        try:
            work(held)
        except Exception as error:  # whatever it is, it does not end the run; the last save raises it
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            rank_zero_warn(f"no checkpoint is saved, training continues and tries again later: {self.failure}")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load after what is being written is complete."""
        self.finish()
        return super().load_checkpoint(path, map_location, weights_only)

    def finish(self, seconds: float | None = None) -> bool:
        """Wait until the file is complete, or for a number of seconds; return whether nothing is being written."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def teardown(self) -> None:
        """Wait for the file, whatever ended the training."""
        self.finish()
