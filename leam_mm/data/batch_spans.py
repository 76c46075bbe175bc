"""Which samples each training micro-batch holds, from any number of samples seen to the end of the run.

Without a change of the batch size, micro-batch k holds the samples from k times its size on. A run that resumes with
another batch size begins at any sample, and its last optimizer step holds the samples that are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from leam_mm.errors import UserError


@dataclass(frozen=True)
class BatchSpans(Sequence[range]):
    """Sample numbers of each micro-batch, over all ranks; micro-batches before ``first`` are empty.

    Args:
        first: Number of the next micro-batch.
        seen: Samples seen before it.
        end: Samples of the whole run.
        batch_size: Samples per optimizer step, over all ranks.
        accumulate: Micro-batches per optimizer step.
    """

    first: int
    seen: int
    end: int
    batch_size: int
    accumulate: int = 1

    @property
    def rest(self) -> int:
        """Samples of the last optimizer step if it is smaller than the others, else 0."""
        return max(0, self.end - self.seen) % self.batch_size

    def __len__(self) -> int:
        """Return the number of the last micro-batch of the run, plus 1."""
        steps = -(-max(0, self.end - self.seen) // self.batch_size)
        return self.first + steps * self.accumulate

    @overload
    def __getitem__(self, number: int) -> range: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[range]: ...
    def __getitem__(self, number: int | slice) -> range | Sequence[range]:
        """Return the sample numbers of one micro-batch."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if number >= len(self):
            raise IndexError(number)
        if number < self.first:
            return range(0)
        step, part = divmod(number - self.first, self.accumulate)
        begin = self.seen + step * self.batch_size
        size = min(self.batch_size, self.end - begin) // self.accumulate
        return range(begin + part * size, begin + (part + 1) * size)

    def size_after(self, seen: int) -> int:
        """Return the number of samples of the micro-batch that begins after ``seen`` samples."""
        begins_last = self.end - self.rest
        return (self.rest if self.rest and seen >= begins_last else self.batch_size) // self.accumulate

    def check(self, ranks: int) -> None:
        """Refuse a last step that cannot be shared evenly by ranks and accumulated micro-batches."""
        if self.rest % (ranks * self.accumulate):
            raise UserError(
                f"the last step would hold {self.rest} samples (max_samples {self.end}, {self.seen} seen, batch size "
                f"{self.batch_size}), which {ranks} ranks x {self.accumulate} accumulated batches do not share evenly: "
                f"set max_samples to {self.end - self.rest} or {self.end - self.rest + self.batch_size}"
            )
