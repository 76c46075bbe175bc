"""Captions to token ids, and the choice of one caption among many."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
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


def choose_caption(
    captions: Sequence[Mapping[str, object]],
    generator: np.random.Generator,
    languages: Sequence[str] | None = None,
    language_weights: Mapping[str, float] | None = None,
) -> Mapping[str, object]:
    """Draw a language among those present, then one of its captions.

    Args:
        captions: Entries with ``text`` and ``language``.
        generator: Of this sample (see sample_order.sample_generator).
        languages: Only these, where the sample has any of them.
        language_weights: Relative chance of each language; 1 where a language is not named.
    """
    allowed = [caption for caption in captions if languages is None or caption["language"] in languages]
    present: dict[str, list[Mapping[str, object]]] = {}
    for caption in allowed or captions:
        present.setdefault(str(caption["language"]), []).append(caption)
    names = sorted(present)
    weights = [1.0 if language_weights is None else language_weights.get(name, 1.0) for name in names]
    if not any(weights):  # the recipe wants none of them, but the sample has no other
        weights = [1.0] * len(names)
    edges = list(accumulate(weights))  # plain floats: numpy takes ten times as long for so few
    chosen = present[names[min(bisect_right(edges, generator.random() * edges[-1]), len(names) - 1)]]
    return chosen[int(generator.integers(len(chosen)))]


def cut_padding(text: Tensor, length: Tensor) -> Tensor:
    """Cut the columns that hold only padding in this batch, while it is on the host: (B, L) -> (B, longest)."""
    return text[:, : int(torch.max(length))]
