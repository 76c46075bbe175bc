"""Small encoders with random weights, and token ids for them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    MT5Config,
    MT5Model,
    T5Config,
    T5Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.encoders.hugging_face_text import HuggingFaceText
from toys.shards import toy_vocabulary, write_toy_tokenizer

TEXT_LENGTH, VOCABULARY = 12, 50
PACKED_LENGTH, PACKED_LENGTHS = 20, (2, 5, 20, 9, 5, 3, 20, 11)


def random_texts(
    lengths: tuple[int, ...] = (2, 5, 12, 9), columns: int = TEXT_LENGTH
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and lengths: begin, random tokens, end (the highest id), padding."""
    generator = torch.Generator().manual_seed(1)
    text = torch.zeros(len(lengths), columns, dtype=torch.int64)
    for row, length in zip(text, lengths, strict=True):
        row[: length - 1] = torch.randint(1, VOCABULARY - 2, (length - 1,), generator=generator)
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return text, torch.tensor(lengths)


def packed_texts(
    lengths: tuple[int, ...] = PACKED_LENGTHS, columns: int = PACKED_LENGTH
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of mixed lengths, several of which fit into one packed row."""
    return random_texts(lengths, columns)


def tiny_clip(tokenizer: Path, init_bias: float | None = None, seed: int = 0) -> SimpleNamespace:
    """The members of a ContrastiveModule that a release needs, with random weights."""
    torch.manual_seed(seed)
    opened = Tokenizer(tokenizer, context_length=12)
    encoder = DualEncoder(
        embed_dim=16,
        vision=ImageTower(image_size=32, patch_size=8, width=32, layers=2, head_width=16, patch_dropout=0.25),
        text=TextTower(context_length=12, vocab_size=opened.vocabulary, width=32, heads=2, layers=2),
        init_scale=20.0,
        init_bias=init_bias,
        image_mean=(0.5, 0.4, 0.3),
        image_std=(0.2, 0.25, 0.3),
    ).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))  # so that no bias stays at zero
    return SimpleNamespace(ema_encoder=lambda: encoder, tokenizer=opened)


def three_layer_encoder(**vision: Any) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(
        16,
        ImageTower(**{"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16, **vision}),
        TextTower(context_length=8, vocab_size=50, width=32, heads=2, layers=2),
        init_bias=-10.0,
    )


HUGGING_FACE_LENGTH, HUGGING_FACE_VOCABULARY = 20, 60


BERT_SIZES = {
    "vocab_size": HUGGING_FACE_VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


def write_text_model(folder: Path, kind: str) -> Path:
    """A tiny model with random weights, as transformers saves it."""
    torch.manual_seed(0)
    if kind == "mt5":
        config = MT5Config(vocab_size=HUGGING_FACE_VOCABULARY, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2)
        MT5Model(config).save_pretrained(folder)
    elif kind == "bert":
        BertModel(BertConfig(**BERT_SIZES)).save_pretrained(folder)
    else:
        XLMRobertaModel(XLMRobertaConfig(**BERT_SIZES, pad_token_id=1)).save_pretrained(folder)
    return folder


def hugging_face_encoder(folder: Path, **text: Any) -> DualEncoder:
    torch.manual_seed(1)
    vision = ImageTower(image_size=8, patch_size=8, width=16, layers=1, head_width=8)
    return DualEncoder(16, vision, HuggingFaceText(str(folder), HUGGING_FACE_LENGTH, **text)).eval()


def write_caption_encoder(folder: Path, kind: str = "t5") -> Path:
    """A tiny encoder with random weights and the toy tokenizer."""
    write_toy_tokenizer(folder)
    rows = toy_vocabulary(folder)
    torch.manual_seed(0)
    if kind == "t5":  # a model of encoder and decoder; only the encoder is used
        sizes = {"vocab_size": rows, "d_model": 24, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 2}
        T5Model(T5Config(**sizes)).save_pretrained(folder)
    else:
        sizes = {"vocab_size": rows, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
        BertModel(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=32)).save_pretrained(folder)
    return folder


@torch.no_grad()
def right_share(module: ContrastiveModule, shards: Path, texts: list[str]) -> float:
    """Share of held-out images whose nearest text names their colour."""
    encoder = module.ema_encoder()
    held_out = PairsModule(shards, ImageDecoding(16), 40, validation=shards, loading=Loading(0))
    batch = next(iter(held_out.val_dataloader()))
    image = encoder.encode_image(encoder.normalise(batch["image"]))
    text = encoder.encode_text(*module.tokenizer.encode(texts))
    wanted = torch.tensor([int(key) % 4 for key in batch["key"]])
    return float(((image @ text.T).argmax(dim=1) == wanted).float().mean())


class RiggedEncoder:
    """Stands for a contrastive module: images and texts with equal numbers have equal embeddings.

    Args:
        image_numbers: Function of images (B, 3, H, W), gives (B,).
        text_number: Function of a text.
        size: More than the largest number.
        image_size: Side of the images.
    """

    def __init__(
        self,
        image_numbers: Callable[[torch.Tensor], torch.Tensor],
        text_number: Callable[[str], int],
        size: int,
        image_size: int = 8,
    ) -> None:
        self.image_numbers, self.text_number, self.image_size = image_numbers, text_number, image_size
        self.codes, self.tokenizer = torch.eye(size), self

    def ema_encoder(self) -> "RiggedEncoder":
        return self

    def to(self, device: torch.device) -> "RiggedEncoder":
        return self

    def eval(self) -> "RiggedEncoder":
        return self

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        return image.float()

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.codes[self.image_numbers(image)]

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[self.text_number(text)] for text in texts]), torch.ones(len(texts))

    def encode_text(self, text: torch.Tensor, text_length: torch.Tensor) -> torch.Tensor:
        return self.codes[text[:, 0]]
