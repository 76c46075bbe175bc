"""Captions to token ids, and the choice of one caption among many."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leam_mm.errors import UserError

ENGLISH = "open_clip"  # instead of a folder: the English vocabulary of 49,408 tokens that open_clip brings along


class Tokenizer:
    """A tokenizer folder, through the very class that open_clip uses on a release.

    Args:
        path: Folder with ``tokenizer.json`` and ``tokenizer_config.json``, of data_tools/train_tokenizer.py or any of
            transformers; a folder with open_clip_config.json, which may say more about it; or ``open_clip`` for the
            English vocabulary of most of open_clip's models.
        context_length: L, tokens per caption including the begin and end token.
    """

    def __init__(self, path: Path | str, context_length: int) -> None:
        """See the class for the arguments."""
        self.path, self.context_length = Path(path), context_length
        self._tokenize = self._open()
        self.has_files = hasattr(self._tokenize, "tokenizer")
        if not self.has_files:
            self.vocabulary, self.pad, self.end = self._tokenize.vocab_size, 0, self._tokenize.eot_token_id
            return
        inner = self._tokenize.tokenizer
        # BERT's end token is called its separator.
        end = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
        if inner.pad_token_id is None or end is None or inner.padding_side != "right":
            raise UserError(
                f"{path}: this tokenizer has no padding or no end token, or pads on the left; give that of an encoder"
            )
        self.vocabulary, self.pad, self.end = len(inner), int(inner.pad_token_id), int(end)

    def _open(self) -> Any:
        """The class that open_clip would take for this folder."""
        from open_clip import SimpleTokenizer, get_tokenizer
        from open_clip.tokenizer import HFTokenizer

        if str(self.path) == ENGLISH:
            return SimpleTokenizer(context_length=self.context_length)
        if (self.path / "open_clip_config.json").is_file():
            return get_tokenizer(f"local-dir:{self.path}", context_length=self.context_length)
        if not (self.path / "tokenizer.json").is_file():
            raise UserError(
                f"{self.path} holds no tokenizer.json: make it with data_tools/train_tokenizer.py, or save one of "
                "transformers there (AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER))"
            )
        return HFTokenizer(str(self.path), context_length=self.context_length)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize captions.

        Returns:
            text (B, L) int64 padded after the end token, and text_length (B,) int64 with begin and end token counted.
        """
        text = self._tokenize(list(captions))
        if self.pad == self.end:  # then the first one is the end
            return text, self._first(text == self.end) + 1
        # Up to the last token that is no padding: open_clip's English vocabulary pads with the id of "!".
        return text, text.shape[1] - self._first((text != self.pad).flip(1))

    @staticmethod
    def _first(found: Tensor) -> Tensor:
        """Column of the first true entry of each row, or the last column if there is none."""
        return torch.where(found.any(dim=1), found.int().argmax(dim=1), found.shape[1] - 1)


@dataclass(frozen=True)
class CaptionMixture:
    """How often captions of each source and length are drawn, among those of the language that was drawn before.

    First the source is drawn, then the length, each among those that are there; so where a caption of every kind is
    there, the shares are products: of language, source and length. A caption with a chance of 0 is drawn only where a
    sample has no other.

    Args:
        sources: Relative chance of each ``source`` of a caption (say original, synthetic); 1 where not named.
        short: Relative chance of short captions.
        long: Relative chance of long captions.
        long_from: Words from which on a caption is long.
    """

    sources: dict[str, float] = field(default_factory=dict)
    short: float = 1.0
    long: float = 1.0
    long_from: int = 16

    def __post_init__(self) -> None:
        """Check what a recipe may have mistaken."""
        chances = {**self.sources, "short": self.short, "long": self.long}
        wrong = {name: chance for name, chance in chances.items() if not 0 <= chance < float("inf")}
        if wrong or not self.short + self.long or self.long_from < 1:
            raise UserError(
                f"caption_mixture has {wrong or self}: chances are numbers from 0 on, not all of them 0, and long_from "
                "is at least 1"
            )

    def source(self, caption: Mapping[str, object]) -> str:
        """Where a caption comes from."""
        if "source" not in caption and self.sources:
            raise UserError(
                f"caption_mixture weighs sources, and the caption {str(caption['text'])[:40]!r} has none: drop "
                "caption_mixture.sources, or encode the latents again if that is what these are"
            )
        return str(caption.get("source", ""))

    def length(self, caption: Mapping[str, object]) -> str:
        """Its class of length."""
        return "long" if len(str(caption["text"]).split()) >= self.long_from else "short"

    def chance(self, kind: str, name: str) -> float:
        """Relative chance of a source or of a length."""
        return self.sources.get(name, 1.0) if kind == "source" else self.long if name == "long" else self.short

    def wanted(self, captions: Sequence[Mapping[str, object]]) -> Sequence[Mapping[str, object]]:
        """Those with a chance, or all where none has."""
        chances = [
            self.chance("source", self.source(one)) * self.chance("length", self.length(one)) for one in captions
        ]
        return [one for one, chance in zip(captions, chances, strict=True) if chance] or captions

    def draw(
        self, captions: Sequence[Mapping[str, object]], generator: np.random.Generator
    ) -> Sequence[Mapping[str, object]]:
        """Draw a source, then a length: those captions that have both."""
        captions = _draw_kind(captions, self.source, lambda name: self.chance("source", name), generator)
        return _draw_kind(captions, self.length, lambda name: self.chance("length", name), generator)


def choose_caption(
    captions: Sequence[Mapping[str, object]],
    generator: np.random.Generator,
    languages: Sequence[str] | None = None,
    language_weights: Mapping[str, float] | None = None,
    mixture: CaptionMixture | None = None,
) -> Mapping[str, object]:
    """Draw a language among those present, then one of its captions.

    Args:
        captions: Entries with ``text`` and ``language``.
        generator: Of this sample (see sample_order.sample_generator).
        languages: Only these, where the sample has any of them.
        language_weights: Relative chance of each language; 1 where a language is not named.
        mixture: Of sources and lengths inside the language; None draws its captions evenly.
    """
    allowed = [caption for caption in captions if languages is None or caption["language"] in languages] or captions
    weights = language_weights or {}
    if mixture is not None:
        allowed = mixture.wanted(allowed)
    chosen = _draw_kind(allowed, lambda one: str(one["language"]), lambda name: weights.get(name, 1.0), generator)
    if mixture is not None:
        chosen = mixture.draw(chosen, generator)
    return chosen[int(generator.integers(len(chosen)))]


def _draw_kind(
    captions: Sequence[Mapping[str, object]],
    kind: Callable[[Mapping[str, object]], str],
    chance: Callable[[str], float],
    generator: np.random.Generator,
) -> Sequence[Mapping[str, object]]:
    """Draw one of the kinds that are present by its relative chance: the captions of that kind."""
    present: dict[str, list[Mapping[str, object]]] = {}
    for caption in captions:
        present.setdefault(kind(caption), []).append(caption)
    names = sorted(present)
    weights = [chance(name) for name in names]
    if not any(weights):  # the recipe wants none of them, but the sample has no other
        weights = [1.0] * len(names)
    edges = list(accumulate(weights))  # plain floats: numpy takes ten times as long for so few
    return present[names[min(bisect_right(edges, generator.random() * edges[-1]), len(names) - 1)]]


def cut_padding(text: Tensor, length: Tensor) -> Tensor:
    """Cut the columns that hold only padding in this batch, while it is on the host: (B, L) -> (B, longest)."""
    return text[:, : int(torch.max(length))]
