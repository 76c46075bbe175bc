"""Latents with caption states, as data_tools/encode_latents.py wrote them, for generators."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leam_mm.data.batch import Decoding, Sample, read_record
from leam_mm.data.planned_module import PlannedModule
from leam_mm.data.remote_shards import ShardCache
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.sample_plan import Source
from leam_mm.errors import UserError


def read_array(members: dict[str, bytes], extension: str) -> np.ndarray:
    """One ``.npy`` member, never unpickled."""
    if extension not in members:
        raise UserError(f"the sample has no {extension}, only {sorted(members)}: these are no latent shards")
    try:
        return np.load(io.BytesIO(members[extension]), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{extension} cannot be read ({error}); run data_tools/check_shards.py on the folder") from None


class LatentDecoding(Decoding):
    """A stored latent and the states of one of its captions."""

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """The caption is drawn from (seed, index)."""
        captions = read_record(members, "caption_states")
        chosen = int(sample_generator(self.seed, index, "caption").integers(len(captions)))
        return {
            "latent": torch.from_numpy(read_array(members, "latent.npy").astype(np.float32)),
            "caption_state": torch.from_numpy(read_array(members, "caption_state.npy")[chosen].astype(np.float32)),
            "caption_length": int(captions[chosen]["length"]),
            "caption": captions[chosen]["text"],
            "language": captions[chosen]["language"],
            "key": key,
            "sample_index": index,
        }

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Cut the padding that no caption of the batch needs: it is masked anyway."""
        batch = super().collate(samples)
        longest = max(1, int(batch["caption_length"].max()))
        batch["caption_state"] = batch["caption_state"][:, :longest].contiguous()
        return batch


class LatentsModule(PlannedModule):
    """Batches of ``latent`` (B, C, h, w), ``caption_state`` (B, L, D), ``caption_length``, ``caption``, ``key``.

    Args:
        train: Latent shard folder or its URL, or several with weights.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation: Latent shard folder walked in order, or None.
        validation_samples: Upper bound for validation.
        workers: Loader processes per rank; changes speed, never order.
        seed: Of order and caption choice.
        max_broken: Share of samples that may be unreadable and are replaced by others; 0 ends the run at the first.
        cache: Where the shards behind URLs are kept.
    """

    def __init__(
        self,
        train: str | Path | list[Source],
        batch_size: int,
        validation: str | Path | None = None,
        validation_samples: int = 1024,
        workers: int = 2,
        seed: int = 0,
        max_broken: float = 0.0,
        cache: ShardCache | None = None,
    ) -> None:
        """See the class for the arguments."""
        decode, plain = LatentDecoding(seed), LatentDecoding(0)
        super().__init__(train, validation, batch_size, validation_samples, workers, decode, plain, max_broken, cache)
