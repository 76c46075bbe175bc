"""Caption states from a text encoder of transformers (T5, mT5, XLM-R, ...), as from CaptionEncoder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import clean_caption
from leam_mm.encoders.hugging_face_text import folder_sha256, transformers_folder, transformers_model
from leam_mm.errors import UserError
from leam_mm.released_files import compare_released_files

VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*")
BATCH_SIZE = 64  # captions of similar length that are encoded together


class HuggingFaceCaptions(nn.Module):
    """Captions to the last hidden states of a frozen text encoder; always in evaluation mode.

    Args:
        folder: Folder saved by transformers: config.json, safetensors and the tokenizer's files. In a pipeline of
            diffusers, these files lie in the folder ``tokenizer`` beside it.
        context_length: Largest L, tokens per caption with special tokens.
    """

    def __init__(self, folder: str, context_length: int = 128) -> None:
        """See the class for the arguments."""
        super().__init__()
        from transformers import AutoTokenizer

        path = transformers_folder(folder)
        words = next((place for place in (path, path.parent / "tokenizer") if _has_vocabulary(place)), None)
        if words is None:  # transformers would invent one
            raise UserError(
                f"{folder} holds no tokenizer ({', '.join(VOCABULARIES)}): save the encoder's tokenizer there"
            )
        compare_released_files(words)
        self.model: Any = transformers_model(folder, texts=True)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True, trust_remote_code=False)
            self.tokenizer.padding_side = "right"
            longest = self.tokenizer.model_max_length
        except Exception as error:  # tokenizers raise many kinds
            reason = str(error).strip().split("\n")[0][:160]
            raise UserError(
                f"{folder} has no usable tokenizer ({reason}): save the encoder's tokenizer there"
            ) from None
        if self.tokenizer.pad_token_id is None:
            raise UserError(f"the tokenizer in {folder} has no padding: set its pad_token, as its encoder was trained")
        self.context_length = min(context_length, longest)
        self.width, self.sha256 = int(self.model.config.hidden_size), folder_sha256(Path(path))

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Clean, tokenize and encode captions, as `CaptionEncoder.encode` does.

        Returns:
            state (B, L, D) float32, zero in the padding, and mask (B, L) bool. L is that of the longest caption.
        """
        texts = [clean_caption(caption) for caption in captions]
        tokens = self.tokenizer(texts, truncation=True, max_length=self.context_length)["input_ids"]
        longest = max(1, *map(len, tokens))
        device = next(self.model.parameters()).device
        state = torch.zeros(len(texts), longest, self.width, device=device)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool, device=device)
        order = sorted(range(len(texts)), key=lambda number: len(tokens[number]))
        for first in range(0, len(order), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            padded = self.tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt").to(device)
            real = padded["attention_mask"].bool()
            states = self.model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
            length = real.shape[1]
            state[rows, :length] = states.last_hidden_state.float() * real[..., None]
            mask[rows, :length] = real
        return state, mask

    def train(self, mode: bool = True) -> "HuggingFaceCaptions":
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(False)


def _has_vocabulary(folder: Path) -> bool:
    return any(file for pattern in VOCABULARIES for file in folder.glob(pattern))
