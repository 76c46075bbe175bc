"""Images with captions, for contrastive encoders, codecs, and generators that encode on the fly."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leam_mm.data.array_format import read_array
from leam_mm.data.batch import Decoding, Sample, read_record
from leam_mm.data.captions import CaptionMixture, Tokenizer, choose_caption, cut_padding
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.language_balance import LanguageBalance
from leam_mm.data.plan_datamodule import PlannedModule
from leam_mm.data.remote_shards import ShardCache
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.sample_plan import Source
from leam_mm.data.stages import Stage, Stages
from leam_mm.errors import UserError


class PairDecoding(Decoding):
    """An image and one of its captions, or several.

    Args:
        image: Decoding and augmentation of the image.
        tokenizer: Folder of the tokenizer; None leaves ``text`` out.
        context_length: L, tokens per caption.
        languages: Draw captions of these only, where a sample has any.
        language_weights: Relative chance of each language of a sample; 1 where not named.
        captions_per_image: K, drawn independently of each other.
        seed: Of crops and caption choice.
        stages: Sizes of images and captions by the samples seen; None keeps both.
        mixture: Of sources and lengths of captions inside a language; None draws them evenly.
    """

    def __init__(
        self,
        image: ImageDecoding,
        tokenizer: Path | None,
        context_length: int,
        languages: list[str] | None,
        language_weights: dict[str, float] | None,
        captions_per_image: int,
        seed: int,
        stages: Stages | None = None,
        mixture: CaptionMixture | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__(seed)
        self.captions_per_image = captions_per_image
        self.image, self.languages, self.language_weights = image, languages, language_weights
        self.tokenizer_path, self.context_length = tokenizer, context_length
        self.stages, self.mixture = stages, mixture
        self._tokenizers: dict[int, Tokenizer] = {}

    def _image(self, index: int) -> ImageDecoding:
        """The decoding of the sample that is seen ``index``-th, at the size of its batch."""
        if self.stages is None:
            return self.image
        image = copy.copy(self.image)
        image.image_size = self.stages.image_size(index)
        return image

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """Crop, captions and languages are drawn from (seed, index)."""
        captions, generator = read_record(members, "captions"), sample_generator(self.seed, index, "caption")
        chosen = [
            choose_caption(captions, generator, self.languages, self.language_weights, self.mixture)
            for _ in range(self.captions_per_image)
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
        if self.tokenizer_path is not None:
            length = stage.text_length if stage is not None and stage.text_length is not None else self.context_length
            if length not in self._tokenizers:
                self._tokenizers[length] = Tokenizer(self.tokenizer_path, length)
            text, batch["text_length"] = self._tokenizers[length].encode(batch["caption"])
            batch["text"] = cut_padding(text, batch["text_length"])
        return batch


def _teachers(members: dict[str, bytes], chosen: list[int]) -> Sample:
    """Embeddings that data_tools/embed_shards.py stored: of the picture, and of the chosen captions (K, D')."""
    if "teacher_image.npy" not in members:
        return {}
    image, text = (read_array(members, f"teacher_{side}.npy").astype(np.float32) for side in ("image", "text"))
    if text.ndim != 2 or len(text) <= max(chosen):
        raise UserError(f"teacher_text.npy is {text.shape}, which are not its captions: embed the shards again")
    return {"teacher_image": torch.from_numpy(image), "teacher_text": torch.from_numpy(text[chosen])}


class PairsModule(PlannedModule):
    """Batches of ``image`` (B, 3, H, W) uint8, ``text`` (B K, l), ``text_length``, ``caption``, ``language``, ``key``.

    The K captions of an image follow each other; K is 1 unless the recipe wants more; l is the longest's length.

    Args:
        train: Shard folder, or one with a keep-list, or its URL; or several with weights.
        image: Size and augmentation of training images; validation takes the size only.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation: Shard folder walked in order, or None.
        tokenizer: Folder of the tokenizer; None leaves ``text`` out (codecs need none).
        context_length: L, tokens per caption.
        languages: Draw captions of these only, where a sample has any.
        language_weights: Relative chance of each language of a sample; 1 where not named.
        captions_per_image: K, captions of each training image; validation has one. An image costs more than a caption.
        validation_samples: Upper bound for validation.
        workers: Loader processes per rank; changes speed, never order.
        seed: Of order, crops and caption choice.
        language_balance: How often each language is drawn, beside language_weights; validation does not follow it.
        max_broken: Share of samples that may be unreadable and are replaced by others; 0 ends the run at the first.
        cache: Where the shards behind URLs are kept.
        stages: Smaller images and shorter captions for a part of the training, or sizes drawn for each batch; an image
            of validation has the size of ``image``.
        caption_mixture: How often captions of each source and length are drawn; validation does not follow it.
    """

    def __init__(
        self,
        train: list[Source] | str | Path,
        image: ImageDecoding,
        batch_size: int,
        validation: str | Path | None = None,
        tokenizer: Path | None = None,
        context_length: int = 77,
        languages: list[str] | None = None,
        language_weights: dict[str, float] | None = None,
        captions_per_image: int = 1,
        validation_samples: int = 2048,
        workers: int = 2,
        seed: int = 0,
        language_balance: LanguageBalance | None = None,
        max_broken: float = 0.0,
        cache: ShardCache | None = None,
        stages: list[Stage] | None = None,
        caption_mixture: CaptionMixture | None = None,
    ) -> None:
        """See the class for the arguments."""
        text = (tokenizer, context_length, languages, language_weights)
        if captions_per_image < 1:
            raise UserError(f"data.init_args.captions_per_image is {captions_per_image}: give at least 1")
        self.stages = Stages(stages, batch_size, context_length, seed) if stages is not None else None
        decode = PairDecoding(image, *text, captions_per_image, seed, self.stages, caption_mixture)
        plain = PairDecoding(image.evaluation(), *text, captions_per_image=1, seed=0)
        super().__init__(train, validation, batch_size, validation_samples, workers, decode, plain, max_broken, cache)
        self.image_size = image.image_size
        self.language_weights, self.language_balance = language_weights or {}, language_balance

    def setup(self, stage: str) -> None:
        """Open the shard folders, and weigh their languages."""
        super().setup(stage)
        if self.language_balance is not None:
            assert self.train_plan is not None and isinstance(self.decode, PairDecoding)
            self.decode.language_weights = self.language_balance.apply(
                self.train_plan, self.train_sources, self.language_weights, "captions"
            )
