"""Image grids during training, generated from the same prompts and noise each time."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.image_grid import draw_grid, read_prompts, spread
from leam_mm.marking.generated_image import generator_name, save_generated, signing_key


class SampleGrid(Callback):
    """Write a grid of generated images to samples/ of the run folder, and to TensorBoard if that is a logger.

    Prompts and noise never change, so grids differ only by the weights. The images come from the method
    ``sample(prompts, seed, steps, guidance)`` of the module, which does not change the random state of training.

    Args:
        prompts: Texts, or a file of texts in one of the formats of ``image_grid.read_prompts``.
        every_n_steps: Optimizer steps between two grids.
        count: Number of prompts, chosen evenly from the list.
        sampling: How the images are sampled.
        seed: Seed of the noise.
        columns: Images per row.
        scale: Integer magnification of the images.
    """

    def __init__(
        self,
        prompts: Path | list[str],
        every_n_steps: int = 1000,
        count: int = 16,
        sampling: SamplerSettings = SamplerSettings(20, 3.0),  # noqa: B008 (frozen)
        seed: int = 0,
        columns: int = 4,
        scale: int = 4,
    ) -> None:
        """See the class for the arguments."""
        if min(every_n_steps, count, columns, scale) < 1:
            raise UserError("SampleGrid: every_n_steps, count, columns and scale must be at least 1")
        self.prompts = prompts
        self.every_n_steps, self.count, self.columns, self.scale = every_n_steps, count, columns, scale
        self.sampling, self.seed = sampling, seed
        self._drawn_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail before the first step if the module generates no images or the prompts cannot be read."""
        if not callable(getattr(pl_module, "sample", None)):
            raise UserError(
                f"SampleGrid: {type(pl_module).__name__} generates no images: remove SampleGrid from trainer.callbacks"
            )
        signing_key()  # a broken one is reported before the first step
        self.chosen = spread(read_prompts(self.prompts), self.count)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write one grid every ``every_n_steps`` optimizer steps."""
        step = trainer.global_step
        if step % self.every_n_steps or step in (0, self._drawn_at):
            return
        self._drawn_at = step
        # Sharded weights are gathered layer by layer, so all ranks must sample; only rank 0 saves the images.
        if not trainer.is_global_zero and pl_module.device_mesh is None:
            return
        sample: Any = pl_module.sample
        images = sample(self.chosen, seed=self.seed, **self.sampling.arguments())
        if not trainer.is_global_zero:
            return
        grid = draw_grid(images, self.chosen, self.columns, self.scale)
        path = Path(trainer.default_root_dir) / "samples" / f"step_{step:08d}.png"
        marked = save_generated(grid, path, generator_name(pl_module))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(marked), step, dataformats="HWC")
