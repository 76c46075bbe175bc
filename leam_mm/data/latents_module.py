"""Latents with caption states, as data_tools/encode_latents.py wrote them, for generators."""

from pathlib import Path
from typing import Any

import torch

from leam_mm.data.batch import Decoding, Sample, read_whole_record
from leam_mm.data.caption_states import pad_states
from leam_mm.data.captions import CaptionMixture, choose_caption
from leam_mm.data.language_balance import LanguageBalance
from leam_mm.data.latent_members import read_caption_state, read_feature, read_latent
from leam_mm.data.plan_datamodule import PlannedModule
from leam_mm.data.remote_shards import ShardCache
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.sample_plan import Source
from leam_mm.errors import UserError


class LatentDecoding(Decoding):
    """A stored latent and the states of one of its captions.

    Args:
        seed: Of the caption choice.
        language_weights: Relative chance of each language of a sample; 1 where not named. None draws all stored
            captions evenly, unless there is a mixture.
        mixture: Of sources and lengths of captions; None draws those of a language evenly.
    """

    def __init__(
        self, seed: int, language_weights: dict[str, float] | None = None, mixture: CaptionMixture | None = None
    ) -> None:
        """See the class for the arguments."""
        super().__init__(seed)
        self.language_weights, self.mixture = language_weights, mixture

    def choose(self, captions: list[dict[str, Any]], index: int) -> int:
        """Place of the caption of the sample that is seen ``index``-th, drawn from (seed, index)."""
        generator = sample_generator(self.seed, index, "caption")
        if self.language_weights is None and self.mixture is None:
            return int(generator.integers(len(captions)))
        chosen = choose_caption(captions, generator, None, self.language_weights, self.mixture)
        return next(place for place, caption in enumerate(captions) if caption is chosen)

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """The caption is drawn from (seed, index)."""
        record, captions = read_whole_record(members, "caption_states")
        chosen = self.choose(captions, index)
        state = read_caption_state(members, captions[chosen], chosen)
        return {
            "latent": read_latent(members, self.seed, index),
            "caption_state": state,
            "caption_length": len(state),
            "caption": captions[chosen]["text"],
            "language": captions[chosen]["language"],
            "key": key,
            "sample_index": index,
            **read_feature(members),
            **_picture_size(record),
        }

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Fill the caption states up to the longest of the batch."""
        if not all("picture_size" in sample for sample in samples):  # a mixture with older folders
            samples = [{name: part for name, part in one.items() if name != "picture_size"} for one in samples]
        states = [sample["caption_state"] for sample in samples]
        if len({state.shape[1] for state in states}) > 1 or len({"image_feature" in sample for sample in samples}) > 1:
            raise UserError(
                "the latent folders of a mixture were encoded with other text encoders, or only some with --features: "
                "encode them alike"
            )
        batch = super().collate([{**sample, "caption_state": None} for sample in samples])
        return batch | {"caption_state": pad_states(states)}


def _picture_size(record: dict[str, Any]) -> Sample:
    """The six numbers of a PictureSize, where the record has them."""
    numbers = record.get("picture_size")
    if numbers is None:
        return {}
    if not isinstance(numbers, list) or len(numbers) != 6 or not all(type(n) is int and n >= 0 for n in numbers):
        raise UserError(f"its json has the picture_size {str(numbers)[:80]}: six whole numbers; encode it again")
    return {"picture_size": torch.tensor(numbers)}


class LatentsModule(PlannedModule):
    """Batches of ``latent`` (B, C, h, w), ``caption_state`` (B, L, D), ``caption_length``, ``caption``, ``key``.

    A folder of buckets is found by its buckets.json: its batches have one shape each (see bucket_order.py). Where the
    encoder kept them, ``picture_size`` (B, 6) says what pictures were and what was cut off (see aspect_buckets.py), and
    ``image_feature`` (B, N, D) what an image encoder sees in them. Where moments were kept, ``latent`` is a draw that
    belongs to (seed, sample); see latent_members.py for all that is stored.

    Args:
        train: Latent shard folder or its URL, or several with weights.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation: Latent shard folder walked in order, or None.
        validation_samples: Upper bound for validation.
        workers: Loader processes per rank; changes speed, never order.
        seed: Of order and caption choice.
        max_broken: Share of samples that may be unreadable and are replaced by others; 0 ends the run at the first.
        cache: Where the shards behind URLs are kept.
        bucket_batch: Samples of one shape that follow each other where the folders have buckets, a multiple of the
            micro-batch. None takes the micro-batch, or what the checkpoint says.
        language_weights: Relative chance of each language of a sample; 1 where not named.
        language_balance: How often each language is drawn, beside language_weights; validation does not follow it.
            With neither of them and no mixture, all stored captions of a sample are drawn evenly.
        caption_mixture: How often captions of each source and length are drawn; validation does not follow it.
    """

    def __init__(
        self,
        train: list[Source] | str | Path,
        batch_size: int,
        validation: str | Path | None = None,
        validation_samples: int = 1024,
        workers: int = 2,
        seed: int = 0,
        max_broken: float = 0.0,
        cache: ShardCache | None = None,
        bucket_batch: int | None = None,
        language_weights: dict[str, float] | None = None,
        language_balance: LanguageBalance | None = None,
        caption_mixture: CaptionMixture | None = None,
    ) -> None:
        """See the class for the arguments."""
        decode, plain = LatentDecoding(seed, language_weights, caption_mixture), LatentDecoding(0)
        parts = (batch_size, validation_samples, workers, decode, plain, max_broken, cache, bucket_batch)
        super().__init__(train, validation, *parts)
        self.language_weights, self.language_balance = language_weights, language_balance

    def setup(self, stage: str) -> None:
        """Open the shard folders, and weigh their languages."""
        super().setup(stage)
        if self.language_balance is not None:
            assert self.train_plan is not None and isinstance(self.decode, LatentDecoding)
            self.decode.language_weights = self.language_balance.apply(
                self.train_plan, self.train_sources, self.language_weights, "caption_states"
            )
