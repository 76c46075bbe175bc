"""Stages of training: small images and short captions first, full sizes at the end (CLIPA, 2305.07017).

    data:
      init_args:
        stages:
        - {samples: 0, image_size: 112, text_length: 16, patch_dropout: 0.5}
        - {samples: 1024000, image_size: [192, 224]}

All sizes are a function of the sample number, so that workers, prefetching, ranks and restarts agree.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from leam_mm.data.sample_order import sample_generator
from leam_mm.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage, from a number of samples seen until the next stage begins.

    Args:
        samples: Samples seen before it begins; a multiple of the batch size.
        image_size: H = W in pixels, or several, of which one is drawn for each batch.
        text_length: Tokens per caption with begin and end; longer captions are cut. None means context_length.
        patch_dropout: Share of image tokens left out, in [0, 1); None means the tower's own.
    """

    samples: int
    image_size: int | list[int]
    text_length: int | None = None
    patch_dropout: float | None = None

    @property
    def sizes(self) -> list[int]:
        """Image sizes of this stage."""
        return [self.image_size] if isinstance(self.image_size, int) else self.image_size


class Stages:
    """The stages of a run.

    Args:
        stages: Stages with ascending ``samples``, the first at 0.
        batch_size: Samples per optimizer step over all ranks; all of them have the same size.
        context_length: Upper bound of tokens per caption.
        seed: Seed of the drawn sizes.
    """

    def __init__(self, stages: Sequence[Stage], batch_size: int, context_length: int, seed: int) -> None:
        """See the class for the arguments."""
        self.stages, self.batch_size, self.seed = list(stages), batch_size, seed
        self._begin = [stage.samples for stage in self.stages]
        if not self.stages or self._begin[0] != 0 or sorted(set(self._begin)) != self._begin:
            raise UserError(f"data.init_args.stages begin at {self._begin} samples: begin at 0 and ascend")
        for number, stage in enumerate(self.stages):
            where = f"data.init_args.stages[{number}]"
            if stage.samples % batch_size:
                raise UserError(f"{where}.samples is {stage.samples}: choose a multiple of the batch size {batch_size}")
            if not stage.sizes or min(stage.sizes) < 1:
                raise UserError(f"{where}.image_size is {stage.image_size}: give one size in pixels, or several")
            if stage.text_length is not None and not 3 <= stage.text_length <= context_length:
                raise UserError(
                    f"{where}.text_length is {stage.text_length}: it lies between 3 and {context_length}, the "
                    "context_length"
                )
            if stage.patch_dropout is not None and not 0 <= stage.patch_dropout < 1:
                raise UserError(f"{where}.patch_dropout is {stage.patch_dropout}: it lies in [0, 1)")

    @property
    def sizes(self) -> list[int]:
        """All image sizes that occur, ascending."""
        return sorted({size for stage in self.stages for size in stage.sizes})

    def at(self, index: int) -> Stage:
        """Return the stage of the sample that is seen ``index``-th."""
        return self.stages[bisect_right(self._begin, index) - 1]

    def image_size(self, index: int) -> int:
        """Return the image size of the sample that is seen ``index``-th, the same for its whole batch."""
        sizes = self.at(index).sizes
        if len(sizes) == 1:
            return sizes[0]
        return sizes[int(sample_generator(self.seed, index // self.batch_size, "image size").integers(len(sizes)))]
