"""Caption encoders by path: our own, those of transformers, and several combined into one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.checkpoint import find_checkpoint, is_run, load_module
from leam_mm.data.caption_states import pack_batch
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.hugging_face_text import folder_sha256
from leam_mm.encoders.pretrained_encoder import CONFIG, PretrainedEncoder, find_weights
from leam_mm.files import file_sha256
from leam_mm.released_files import RELEASE, released_part

AnyCaptions = CaptionEncoder | HuggingFaceCaptions


class SeveralCaptionEncoders(nn.Module):
    """Several frozen text encoders as one: concatenates all real tokens of a caption, each encoder in its own channels.

    Args:
        encoders: In the order given to data_tools/encode_latents.py.
    """

    def __init__(self, encoders: list[AnyCaptions]) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.width = sum(caption_width(encoder) for encoder in encoders)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return state (B, L, D) and mask (B, L) as stored ones; see data/caption_states.py."""
        states, masks = zip(*(encoder.encode(captions) for encoder in self.encoders), strict=True)  # type: ignore[operator]
        return pack_batch(states, masks)

    def train(self, mode: bool = True) -> "SeveralCaptionEncoders":
        """Stay in evaluation mode: the encoders are frozen."""
        return super().train(False)


def caption_width(encoder: AnyCaptions | SeveralCaptionEncoders) -> int:
    """Return D, the channels of an encoder's states."""
    return encoder.encoder.text.width if isinstance(encoder, CaptionEncoder) else encoder.width


def from_transformers(path: str | Path) -> bool:
    """Return whether a path is a folder saved by transformers (or diffusers), and no run or release of ours.

    A release holds the config.json of transformers beside the files of open_clip, which are preferred.
    """
    folder = Path(path)
    ours = (folder / CONFIG).is_file() or (folder / RELEASE).is_file()
    return (folder / "config.json").is_file() and not ours


def encoder_file(path: str | Path) -> tuple[Path, str]:
    """Return file or folder of an encoder or codec, and its digest."""
    if from_transformers(path):
        return Path(path), folder_sha256(Path(path))
    if folder := _open_clip_folder(path):
        file, _, _ = find_weights(str(folder), None)
        if file is not None:
            return folder, file_sha256(file)
    file = find_checkpoint(path)
    return file, file_sha256(file)


def open_caption_encoder(path: str | Path, context_length: int = 128) -> AnyCaptions:
    """Load a text encoder.

    Args:
        path: Run or checkpoint of a ContrastiveModule, a folder of open_clip with its tokenizer, a release with such a
            folder, or a folder of transformers.
        context_length: Largest number of tokens per caption of an encoder of transformers; our encoders have their own.
    """
    if from_transformers(path):
        return HuggingFaceCaptions(str(path), context_length)
    if folder := _open_clip_folder(path):
        encoder = PretrainedEncoder(str(folder))
        tokenizer = Tokenizer(folder, encoder.context_length)
        encoder.check_tokenizer(tokenizer)
        return CaptionEncoder(encoder, tokenizer)
    module: Any = load_module(path, "ema_encoder")  # the class lives in a higher layer
    return CaptionEncoder.from_module(module)


def _open_clip_folder(path: str | Path) -> Path | None:
    """Return the folder of open_clip at a path, which may be that of a release, or None if there is none."""
    if is_run(path):
        return None
    folder = released_part(path, "encoder")
    return folder if (folder / CONFIG).is_file() else None
