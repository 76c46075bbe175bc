"""Caption encoders: our own text tower, encoders of transformers from a folder, and several joined into one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from toys.codecs import tiny_dc
from toys.encoders import write_caption_encoder
from toys.recipes import clip_recipe, save_checkpoint
from transformers import BertModel, T5Model

from leam_mm.captions.caption_encoder import CaptionEncoder, clean_caption
from leam_mm.captions.caption_encoders import (
    SeveralCaptionEncoders,
    caption_width,
    encoder_file,
    open_caption_encoder,
)
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release.diffusers_folder import build_pipeline

TEXTS = ["a red square", "", "Quadrat, grün " * 9, "A Blue  square on a yellow square"]


class WordTokenizer:
    """One id per word, begin 1, end 2, padded with 0 to eight tokens."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen = list(captions)
        rows = [[1, *(3 + len(word) for word in caption.split()), 2] for caption in captions]
        text = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
        return text, torch.tensor([len(row) for row in rows])


class Tower(nn.Module):
    """A text tower with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 6)
        self.dropout = nn.Dropout(0.5)

    def text_states(self, text: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.embedding(text))


@pytest.fixture
def encoder() -> CaptionEncoder:
    module = SimpleNamespace(ema_encoder=Tower, tokenizer=WordTokenizer())
    return CaptionEncoder.from_module(module)  # type: ignore[arg-type]


def test_states_have_one_row_a_token_and_a_mask(encoder: CaptionEncoder) -> None:
    state, mask = encoder.encode(["ein roter Kreis", "", "δύο"])
    assert state.shape == (3, 8, 6) and state.dtype == torch.float32
    assert mask.sum(1).tolist() == [5, 2, 3]
    assert mask[0].tolist() == [True] * 5 + [False] * 3


def test_captions_are_cleaned_as_in_the_released_pipeline(encoder: CaptionEncoder) -> None:
    encoder.encode(["  Ein ROTER (Kreis) ", "Два кръга"])
    assert encoder.tokenizer.seen == ["ein roter kreis", "два кръга"]  # type: ignore[attr-defined]
    assert clean_caption("Żewġ ċrieki ħomor") == "żewġ ċrieki ħomor"
    assert clean_caption("see https://example.com/a now") == "see now"


def test_encoder_is_frozen_and_stays_in_evaluation_mode(encoder: CaptionEncoder) -> None:
    encoder.train()
    first, second = (encoder.encode(["a b c"])[0] for _ in range(2))
    assert torch.equal(first, second)  # dropout is off
    assert not first.requires_grad
    assert not any(value.requires_grad for value in encoder.parameters())


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_states_are_those_of_transformers_for_each_text_alone(tmp_path: Path, kind: str) -> None:
    folder = write_caption_encoder(tmp_path, kind)
    encoder = HuggingFaceCaptions(str(folder), context_length=10)
    state, mask = encoder.encode(TEXTS)
    assert state.shape == (len(TEXTS), 10, encoder.width) and mask.sum(1).tolist()[1] == 2 and mask.sum(1).max() == 10
    theirs = (T5Model if kind == "t5" else BertModel).from_pretrained(folder).eval()
    run = theirs.get_encoder() if kind == "t5" else theirs
    for row, text in enumerate(TEXTS):
        tokens = encoder.tokenizer(" ".join(text.lower().split()), truncation=True, max_length=10, return_tensors="pt")
        with torch.no_grad():
            expected = run(input_ids=tokens["input_ids"]).last_hidden_state[0]
        assert mask[row].sum() == len(expected) and not state[row, len(expected) :].any()
        torch.testing.assert_close(state[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_length_is_that_of_the_tokenizer_and_the_digest_covers_all_files(tmp_path: Path) -> None:
    folder = write_caption_encoder(tmp_path / "a")
    encoder = HuggingFaceCaptions(str(folder))
    assert encoder.context_length == 12 and not encoder.train().model.training
    assert HuggingFaceCaptions(str(write_caption_encoder(tmp_path / "b"))).sha256 == encoder.sha256
    with open(folder / "tokenizer_config.json", "a") as file:
        file.write("\n")
    assert HuggingFaceCaptions(str(folder)).sha256 != encoder.sha256


def test_missing_encoder_or_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor in the local cache"):
        HuggingFaceCaptions("someone/t5")
    folder = write_caption_encoder(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        HuggingFaceCaptions(str(folder))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("encoders")
    clip = save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, toy_shards, toy_tokenizer)["model"])
    return [str(clip), str(write_caption_encoder(folder / "text"))]


def test_path_decides_the_kind_of_encoder(paths: list[str]) -> None:
    own, other = (open_caption_encoder(path, 9) for path in paths)
    assert isinstance(own, CaptionEncoder) and isinstance(other, HuggingFaceCaptions) and other.context_length == 9
    assert (caption_width(own), caption_width(other)) == (32, 24)
    assert encoder_file(paths[0]) == (Path(paths[0]), file_sha256(Path(paths[0])))
    assert encoder_file(paths[1]) == (Path(paths[1]), other.sha256)


def test_several_encoders_give_the_tokens_of_all_in_a_row(paths: list[str]) -> None:
    single = [open_caption_encoder(path) for path in paths]
    several = SeveralCaptionEncoders(single)
    state, mask = several.encode(TEXTS)
    assert state.shape[2] == several.width == caption_width(several) == 56 and not several.train().training
    for row, text in enumerate(TEXTS):
        (first, one), (second, two) = (encoder.encode([text]) for encoder in single)
        n, m = int(one.sum()), int(two.sum())
        assert mask[row].tolist() == [column < n + m for column in range(mask.shape[1])]
        torch.testing.assert_close(state[row, :n, :32], first[0, :n], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state[row, n : n + m, 32:], second[0, :m], rtol=1e-4, atol=1e-4)
        assert not state[row, n:, :32].any() and not state[row, :n, 32:].any() and not state[row, n + m :].any()


def test_generator_records_and_checks_every_encoder(paths: list[str], tmp_path: Path) -> None:
    parts = FrozenParts(paths, None, None)
    encoder: Any = parts.caption_encoder(56)
    assert isinstance(encoder, SeveralCaptionEncoders) and parts.caption_encoder(56) is encoder
    assert set(parts.record()) == {"clip", "clip_1"} and parts.record()["clip_1"]["path"] == paths[1]
    with pytest.raises(UserError, match="has 56 channels, the denoiser expects 32"):
        FrozenParts(paths, None, None).caption_encoder(32)
    with pytest.raises(UserError, match="trained with another clip"):
        FrozenParts(paths[::-1], None, None).compare(parts.record())
    assert isinstance(FrozenParts(paths[1], None, None).caption_encoder(24), HuggingFaceCaptions)
    with pytest.raises(UserError, match="this needs the clip"):
        FrozenParts([], None, None).caption_encoder(1)


def test_generator_trains_on_several_encoders_but_cannot_be_released(paths: list[str]) -> None:
    torch.manual_seed(0)
    denoiser = PRXDenoiser(4, 56, hidden_size=32, depth=1, num_heads=2)
    module = LatentDiffusionModule(denoiser, RectifiedFlow(), 4, FrozenParts(paths), caption_dropout=0.5)
    module.setup("fit")
    for value in denoiser.parameters():
        torch.nn.init.normal_(value, std=0.2)
    state, mask = SeveralCaptionEncoders([open_caption_encoder(path) for path in paths]).encode(TEXTS)
    captions = {"caption_state": state, "caption_length": mask.sum(1)}
    batch = {"latent": torch.randn(4, 4, 4, 4), **captions, "sample_index": torch.arange(4)}
    losses = module.sample_losses(batch)
    empty, real = module.conditioning.empty()
    assert torch.isfinite(losses).all() and empty.shape == (1, int(real.sum()), 56)
    # Values in the masked padding have no influence, neither of kept captions nor of dropped ones.
    noisy = state + 9 * (~mask[..., None])
    torch.testing.assert_close(module.sample_losses(batch | {"caption_state": noisy}), losses, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="several text encoders cannot be released"):
        build_pipeline(denoiser, RectifiedFlow(), module.caption_encoder, tiny_dc(), 16)
