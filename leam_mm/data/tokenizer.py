"""Captions to token ids, with the tokenizer class that open_clip uses on a release."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leam_mm.errors import UserError

CONFIG = "open_clip_config.json"
OPTIONS = {"clean", "strip_sep_token", "language", "additional_special_tokens"}  # a config may set; others name files
MOST_TOKENS = 4096  # that are counted for a caption
COUNTED_AT_ONCE = 256
LETTERS_PER_TOKEN = 64  # that are read of a caption, for each token that is kept
MOST_LETTERS = 1000  # of a word
_LONG_WORD = re.compile(rf"(?<!\S)(\S{{{MOST_LETTERS}}})\S+")  # tried at the start of each word only
ENGLISH = "open_clip"  # given instead of a folder: the English vocabulary of 49,408 tokens inside open_clip


# Plain JSON only: a folder may hold code, which must not be released or kept.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Tokenizer:
    """A tokenizer folder.

    Args:
        path: Folder with ``tokenizer.json`` and ``tokenizer_config.json``, written by data_tools/train_tokenizer.py or
            transformers; a folder with open_clip_config.json, which may add settings; or ``open_clip`` for the English
            vocabulary of most open_clip models.
        context_length: L, tokens per caption including the begin and end token.
    """

    def __init__(self, path: Path | str, context_length: int) -> None:
        """See the class for the arguments."""
        self.path, self.context_length = Path(path), context_length
        self._tokenize = self._open()
        self.has_files = hasattr(self._tokenize, "tokenizer")
        if not self.has_files:
            self.vocabulary, self.pad, self.end = self._tokenize.vocab_size, 0, self._tokenize.eot_token_id
            self.begin: int | None = self._tokenize.sot_token_id
            return
        inner = self._tokenize.tokenizer
        # BERT calls its end token the separator.
        end = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
        if inner.pad_token_id is None or end is None or inner.padding_side != "right":
            raise UserError(
                f"{path}: this tokenizer has no padding or no end token, or pads on the left; give that of an encoder"
            )
        self.vocabulary, self.pad, self.end = len(inner), int(inner.pad_token_id), int(end)
        self.begin = inner.bos_token_id if inner.bos_token_id is not None else inner.cls_token_id

    def _open(self) -> Any:
        """Return the tokenizer that open_clip would open for this folder."""
        from open_clip import SimpleTokenizer, get_tokenizer
        from open_clip.tokenizer import HFTokenizer

        if str(self.path) == ENGLISH:
            return SimpleTokenizer(context_length=self.context_length)
        # Without them, transformers asks whether to run the code of a folder.
        safe = {"trust_remote_code": False, "local_files_only": True}
        if (self.path / CONFIG).is_file():
            options = safe if _refuse_options(self.path / CONFIG).get("hf_tokenizer_name") else {}
            return self._opened(get_tokenizer, f"local-dir:{self.path}", **options)
        if not (self.path / "tokenizer.json").is_file():
            raise UserError(
                f"{self.path} holds no tokenizer.json: make it with data_tools/train_tokenizer.py, or save one of "
                "transformers there (AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER))"
            )
        return self._opened(HFTokenizer, str(self.path), **safe)

    def _opened(self, kind: Callable[..., Any], name: str, **options: Any) -> Any:
        try:
            return kind(name, context_length=self.context_length, **options)
        except Exception as error:  # open_clip, transformers and tokenizers raise many kinds for foreign files
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise UserError(f"{self.path} holds no usable tokenizer ({reason}): copy its folder again") from None

    def encode(self, captions: Sequence[str], context_length: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize captions.

        Args:
            captions: B texts.
            context_length: L, at which they are cut; None takes that of the encoder. Of words of more than
                ``MOST_LETTERS`` only the start is read.

        Returns:
            text (B, L) int64 padded after the end token, and text_length (B,) int64 with begin and end token counted.
        """
        length = context_length or self.context_length
        text = self._tokens([_bounded(caption, LETTERS_PER_TOKEN * length) for caption in captions], length)
        if self.pad == self.end:  # then the first one is the end
            return text, self._first(text == self.end) + 1
        # Up to the last token that is no padding: open_clip's English vocabulary pads with the id of "!".
        return text, text.shape[1] - self._first((text != self.pad).flip(1))

    def _tokens(self, captions: list[str], context_length: int) -> Tensor:
        """Return what open_clip's tokenizer returns, (B, L) int64."""
        outer = self._tokenize
        if not self.has_files or outer.tokenizer_mode or outer.strip_sep_token:
            return outer(captions, context_length)
        # Asked for tensors, transformers first flattens its lists in Python: more work than the tokens themselves.
        rows = outer.tokenizer(
            [outer.clean_fn(caption) for caption in captions],
            max_length=context_length,
            padding="max_length",
            truncation=True,
        ).input_ids
        return torch.from_numpy(np.array(rows, np.int64))

    def full_lengths(self, captions: Sequence[str]) -> Tensor:
        """Return the number of tokens (B,) that each caption needs, begin and end counted; ``MOST_TOKENS`` at most."""
        order = sorted(range(len(captions)), key=lambda number: len(captions[number]))
        lengths = torch.zeros(len(captions), dtype=torch.int64)
        for start in range(0, len(order), COUNTED_AT_ONCE):
            part = order[start : start + COUNTED_AT_ONCE]
            texts = [captions[number] for number in part]
            most = max(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            # A token is at least a byte; normalisation may make a character longer.
            lengths[part] = self.encode(texts, min(MOST_TOKENS, 2 * most + 8))[1]
        return lengths

    @staticmethod
    def _first(found: Tensor) -> Tensor:
        """Return the column of the first true entry of each row, or the last column if there is none."""
        return torch.where(found.any(dim=1), found.int().argmax(dim=1), found.shape[1] - 1)


def _bounded(caption: str, most: int) -> str:
    """Return the start of a caption whose words take little time: pairs of letters are joined in quadratic time."""
    if len(caption) <= MOST_LETTERS:
        return caption
    text = _LONG_WORD.sub(r"\1", caption)
    return " ".join(text.split())[:most] if len(caption) > most else text


def _refuse_options(file: Path) -> dict[str, Any]:
    """Return the ``text_cfg`` of an open_clip_config.json, unless it sets more than how a tokenizer reads captions."""
    try:
        text = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        options = set(text.get("tokenizer_kwargs", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not a valid open_clip config ({error!r:.120}): replace the file") from None
    if more := sorted(options - OPTIONS):
        raise UserError(f"{file} sets tokenizer_kwargs {', '.join(more)}: only {', '.join(sorted(OPTIONS))} are taken")
    return text


def cut_padding(text: Tensor, length: Tensor) -> Tensor:
    """Cut the columns that are padding in all rows, (B, L) -> (B, longest); call it on the host to avoid a sync."""
    return text[:, : int(torch.max(length))]
