"""Latents with caption states, as data_tools/encode_latents.py wrote them, for generators."""

from pathlib import Path
from typing import Any

import torch

from leam_mm.data.batch import Decoding, Sample, read_whole_record
from leam_mm.data.caption_choice import CaptionChoice, choose_caption
from leam_mm.data.caption_states import pad_states
from leam_mm.data.latent_members import has_texts_only, read_caption_state, read_feature, read_latent
from leam_mm.data.plan_datamodule import DEFAULT_LOADING, Loading, PlannedModule
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.sample_plan import Source
from leam_mm.errors import UserError

DEFAULT_CAPTIONS = CaptionChoice()


class LatentDecoding(Decoding):
    """Reads a stored latent and one of its captions, with its states if they are stored.

    Args:
        seed: Seed of the caption choice.
        captions: Choice of the captions. Without weights and a mixture all stored captions are drawn evenly.
    """

    def __init__(self, seed: int, captions: CaptionChoice = DEFAULT_CAPTIONS) -> None:
        """See the class for the arguments."""
        super().__init__(seed, captions.language_weights)
        self.captions = captions

    def choose(self, captions: list[dict[str, Any]], index: int) -> int:
        """Return the position of the caption of the sample that is seen ``index``-th, drawn from (seed, index)."""
        generator = sample_generator(self.seed, index, "caption")
        languages, mixture = self.captions.languages_at(captions, index, generator), self.captions.mixture
        if languages is None and self.language_weights is None and mixture is None:
            return int(generator.integers(len(captions)))
        chosen = choose_caption(captions, generator, languages, self.language_weights, mixture)
        return next(position for position, caption in enumerate(captions) if caption is chosen)

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """Read a sample; the caption is drawn from (seed, index)."""
        record, captions = read_whole_record(members, "caption_states")
        chosen = self.choose(captions, index)
        sample: Sample = {"latent": read_latent(members, self.seed, index)}
        if not has_texts_only(members, captions):
            state = read_caption_state(members, captions[chosen], chosen)
            sample |= {"caption_state": state, "caption_length": len(state)}
        return sample | {
            "caption": captions[chosen]["text"],
            "language": captions[chosen]["language"],
            "key": key,
            "sample_index": index,
            **read_feature(members),
            **_picture_size(record),
        }

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Pad the caption states to the longest of the batch."""
        if not all("picture_size" in sample for sample in samples):  # a mixture with older folders
            samples = [{name: part for name, part in one.items() if name != "picture_size"} for one in samples]
        states = [sample["caption_state"] for sample in samples if "caption_state" in sample]
        kinds = {("caption_state" in sample, "image_feature" in sample) for sample in samples}
        if len({state.shape[1] for state in states}) > 1 or len(kinds) > 1:
            raise UserError(
                "the latent folders of a mixture were encoded with different text encoders, or only some with "
                "--features or --texts-only: encode them with the same options"
            )
        if not states:
            return super().collate(samples)
        batch = super().collate([{**sample, "caption_state": None} for sample in samples])
        return batch | {"caption_state": pad_states(states)}


def _picture_size(record: dict[str, Any]) -> Sample:
    """Return the six numbers of a ImageSize, if the record has them."""
    numbers = record.get("picture_size")
    if numbers is None:
        return {}
    if not isinstance(numbers, list) or len(numbers) != 6 or not all(type(n) is int and n >= 0 for n in numbers):
        raise UserError(f"its json has the picture_size {str(numbers)[:80]}: six whole numbers; encode it again")
    return {"picture_size": torch.tensor(numbers)}


class LatentsModule(PlannedModule):
    """Batches of ``latent`` (B, C, h, w), ``caption_state`` (B, L, D), ``caption_length``, ``caption``, ``key``.

    Latents encoded with --texts-only have no ``caption_state`` and ``caption_length``.
    A folder with buckets.json has buckets: each of its batches has one shape (see bucket_order.py). If the shards hold
    them, batches also have ``picture_size`` (B, 6), the original sizes and crops (see aspect_buckets.py), and
    ``image_feature`` (B, N, D) from an image encoder. If the shards hold mean and variance, ``latent`` is a draw that
    depends on (seed, sample number) only; see latent_members.py for all that is stored.

    Args:
        train: Latent shard folder, its URL, or several with weights.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation: Latent shard folder that is read in order, or None.
        validation_samples: Upper bound for validation.
        captions: Choice of the captions. Without weights, balance and a mixture all stored captions of a sample are
            drawn evenly.
        loading: Processes, tolerance of unreadable samples, cache.
        bucket_batch: Number of consecutive samples of one shape, a multiple of the micro-batch, for folders with
            buckets. None means the micro-batch, or the value in the checkpoint.
        seed: Seed of order and caption choice.
    """

    caption_field = "caption_states"

    def __init__(
        self,
        train: list[Source] | str | Path,
        batch_size: int,
        validation: str | Path | None = None,
        validation_samples: int = 1024,
        captions: CaptionChoice = DEFAULT_CAPTIONS,
        loading: Loading = DEFAULT_LOADING,
        bucket_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        decode, plain = LatentDecoding(seed, captions), LatentDecoding(0)
        parts = (decode, plain, loading, captions, bucket_batch)
        super().__init__(train, validation, batch_size, validation_samples, *parts)
