"""Captions to token ids, and the choice of one caption among many."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leam_mm.errors import UserError


class Tokenizer:
    """A tokenizer folder of data_tools/train_tokenizer.py, through the very class that open_clip uses on a release.

    Args:
        path: Folder with ``tokenizer.json`` and ``tokenizer_config.json``.
        context_length: L, tokens per caption including the begin and end token.
    """

    def __init__(self, path: Path | str, context_length: int) -> None:
        """See the class for the arguments."""
        from open_clip.tokenizer import HFTokenizer

        if not (Path(path) / "tokenizer.json").is_file():
            raise UserError(f"{path} holds no tokenizer.json: make it with data_tools/train_tokenizer.py")
        self.path, self.context_length = Path(path), context_length
        self._tokenize = HFTokenizer(str(path), context_length=context_length)
        self.vocabulary = len(self._tokenize.tokenizer)
        self.end = int(self._tokenize.tokenizer.eos_token_id)
        if self.end != self.vocabulary - 1:
            raise UserError(
                f"{path}: the end token has id {self.end}, not the highest ({self.vocabulary - 1}): retrain it"
            )

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize captions.

        Returns:
            text (B, L) int64 padded after the end token, and text_length (B,) int64 with begin and end token counted.
        """
        text = self._tokenize(list(captions))
        # The end token has the highest id and stands once: its place is the pooled position, as in open_clip.
        return text, text.argmax(dim=1) + 1


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
    weights = np.array([1.0 if language_weights is None else language_weights.get(name, 1.0) for name in names])
    if not weights.any():  # the recipe wants none of them, but the sample has no other
        weights = np.ones(len(names))
    edge = np.cumsum(weights) / weights.sum()
    chosen = present[names[min(int(np.searchsorted(edge, generator.random(), side="right")), len(names) - 1)]]
    return chosen[int(generator.integers(len(chosen)))]


def cut_padding(text: Tensor, length: Tensor) -> Tensor:
    """Cut the columns that hold only padding in this batch, while it is on the host: (B, L) -> (B, longest)."""
    return text[:, : int(torch.max(length))]
