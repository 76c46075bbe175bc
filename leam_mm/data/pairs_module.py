"""Images with captions, for contrastive encoders, codecs, and generators that encode on the fly."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leam_mm.data.array_format import read_array
from leam_mm.data.batch import Decoding, Sample, read_record
from leam_mm.data.caption_choice import CaptionChoice, choose_caption
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.plan_datamodule import DEFAULT_LOADING, Loading, PlannedModule
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.sample_plan import Source
from leam_mm.data.stages import Stage, Stages
from leam_mm.data.tokenizer import Tokenizer, cut_padding
from leam_mm.errors import UserError


@dataclass(frozen=True)
class PairCaptions(CaptionChoice):
    """Which captions an image comes with, and their tokens.

    Args:
        language_weights: Relative weight of each language of a sample; 1 for any other.
        language_balance: Weights of the languages by their frequency, multiplied with ``language_weights``; not used in
            validation.
        mixture: Weights of sources and lengths within a language; None draws its captions evenly. Not used in
            validation.
        curriculum: One language at the start of the run; None draws all languages throughout. Not used in validation.
        tokenizer: Folder of the tokenizer; None leaves ``text`` out of the batch (codecs need none).
        context_length: L, tokens per caption.
        languages: Draw captions of these languages only, if a sample has any of them.
        per_image: K, captions of each training image, drawn independently; validation has one. A caption costs less
            than an image.
    """

    tokenizer: Path | None = None
    context_length: int = 77
    languages: list[str] | None = None
    per_image: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.per_image < 1:
            raise UserError(f"data.init_args.captions.per_image is {self.per_image}: give at least 1")


DEFAULT_CAPTIONS = PairCaptions()


class PairDecoding(Decoding):
    """Decodes an image and draws one of its captions, or several.

    Args:
        image: Decoding and augmentation of the image.
        captions: Choice and tokens of the captions.
        seed: Seed of crops and caption choice.
        stages: Sizes of images and captions by the samples seen; None keeps both.
    """

    def __init__(
        self,
        image: ImageDecoding,
        captions: PairCaptions = DEFAULT_CAPTIONS,
        seed: int = 0,
        stages: Stages | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__(seed, captions.language_weights)
        self.image, self.captions, self.stages = image, captions, stages
        self._tokenizers: dict[int, Tokenizer] = {}

    def _image(self, index: int) -> ImageDecoding:
        """Return the decoding of the sample that is seen ``index``-th, at the size of its batch."""
        if self.stages is None:
            return self.image
        image = copy.copy(self.image)
        image.image_size = self.stages.image_size(index)
        return image

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """Decode a sample; crop, captions and languages are drawn from (seed, index)."""
        captions, generator = read_record(members, "captions"), sample_generator(self.seed, index, "caption")
        languages = self.captions.languages_at(captions, index, generator, self.captions.languages)
        chosen = [
            choose_caption(captions, generator, languages, self.language_weights, self.captions.mixture)
            for _ in range(self.captions.per_image)
        ]
        return {
            "image": self._image(index)(image_member(members), sample_generator(self.seed, index, "crop")),
            "caption": [str(caption["text"]) for caption in chosen],
            "language": [caption["language"] for caption in chosen],
            "key": key,
            "sample_index": index,
            **_teachers(members, [next(i for i, each in enumerate(captions) if each is one) for one in chosen]),
        }

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Tokenize the captions of a batch in one call, in half the time of as many calls."""
        batch = super().collate(samples)
        for name in ("caption", "language"):
            batch[name] = [each for several in batch[name] for each in several]
        if "teacher_text" in batch:
            batch["teacher_text"] = batch["teacher_text"].flatten(0, 1)
        stage = self.stages.at(int(batch["sample_index"][0])) if self.stages is not None else None
        if stage is not None and stage.patch_dropout is not None:
            batch["patch_dropout"] = stage.patch_dropout
        if self.captions.tokenizer is not None:
            length = stage.text_length if stage is not None else None
            length = self.captions.context_length if length is None else length
            if length not in self._tokenizers:
                self._tokenizers[length] = Tokenizer(self.captions.tokenizer, length)
            text, batch["text_length"] = self._tokenizers[length].encode(batch["caption"])
            batch["text"] = cut_padding(text, batch["text_length"])
        return batch


def _teachers(members: dict[str, bytes], chosen: list[int]) -> Sample:
    """Return the embeddings stored by data_tools/embed_shards.py: of the image, and of the chosen captions (K, D')."""
    if "teacher_image.npy" not in members:
        return {}
    image, text = (read_array(members, f"teacher_{side}.npy").astype(np.float32) for side in ("image", "text"))
    if text.ndim != 2 or len(text) <= max(chosen):
        raise UserError(f"teacher_text.npy is {text.shape}, which does not fit its captions: embed the shards again")
    return {"teacher_image": torch.from_numpy(image), "teacher_text": torch.from_numpy(text[chosen])}


class PairsModule(PlannedModule):
    """Batches of ``image`` (B, 3, H, W) uint8, ``text`` (B K, l), ``text_length``, ``caption``, ``language``, ``key``.

    The K captions of an image follow each other; l is the length of the longest caption of the batch.

    Args:
        train: Shard folder, its URL, a folder with a keep-list, or several of these with weights.
        image: Size and augmentation of training images; validation uses the size only.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation: Shard folder that is read in order, or None.
        validation_samples: Upper bound for validation.
        captions: Choice and tokens of the captions.
        loading: Processes, tolerance of unreadable samples, cache.
        stages: Smaller images and shorter captions for a part of the run, or sizes drawn for each batch; validation
            images have the size of ``image``.
        seed: Seed of order, crops and caption choice.
    """

    def __init__(
        self,
        train: list[Source] | str | Path,
        image: ImageDecoding,
        batch_size: int,
        validation: str | Path | None = None,
        validation_samples: int = 2048,
        captions: PairCaptions = DEFAULT_CAPTIONS,
        loading: Loading = DEFAULT_LOADING,
        stages: list[Stage] | None = None,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        self.stages = Stages(stages, batch_size, captions.context_length, seed) if stages is not None else None
        decode = PairDecoding(image, captions, seed, self.stages)
        plain = PairDecoding(image.evaluation(), replace(captions, per_image=1, mixture=None, curriculum=None))
        super().__init__(train, validation, batch_size, validation_samples, decode, plain, loading, captions)
        self.image_size = image.image_size
