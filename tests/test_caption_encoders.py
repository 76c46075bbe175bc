"""Text encoders by their paths, and several that answer as one; a generator takes them as it takes a single one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toys.encoders import write_caption_encoder
from toys.recipes import clip_recipe, save_checkpoint

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.caption_encoders import (
    SeveralCaptionEncoders,
    caption_width,
    encoder_file,
    open_caption_encoder,
)
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.codecs.latent_codec import DCCodec
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release.diffusers_folder import build_pipeline

TEXTS = ["a red square", "", "Quadrat, grün", "a blue square on a yellow square"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("encoders")
    clip = save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, toy_shards, toy_tokenizer)["model"])
    return [str(clip), str(write_caption_encoder(folder / "text"))]


def test_each_path_opens_its_kind(paths: list[str]) -> None:
    own, other = (open_caption_encoder(path, 9) for path in paths)
    assert isinstance(own, CaptionEncoder) and isinstance(other, HuggingFaceCaptions) and other.context_length == 9
    assert (caption_width(own), caption_width(other)) == (32, 24)
    assert encoder_file(paths[0]) == (Path(paths[0]), file_sha256(Path(paths[0])))
    assert encoder_file(paths[1]) == (Path(paths[1]), other.sha256)


def test_several_answer_with_the_tokens_of_all(paths: list[str]) -> None:
    single = [open_caption_encoder(path) for path in paths]
    several = SeveralCaptionEncoders(single)
    state, mask = several.encode(TEXTS)
    assert state.shape[2] == several.width == caption_width(several) == 56 and not several.train().training
    for row, text in enumerate(TEXTS):
        (first, one), (second, two) = (encoder.encode([text]) for encoder in single)
        n, m = int(one.sum()), int(two.sum())
        assert mask[row].tolist() == [place < n + m for place in range(mask.shape[1])]
        torch.testing.assert_close(state[row, :n, :32], first[0, :n], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state[row, n : n + m, 32:], second[0, :m], rtol=1e-4, atol=1e-4)
        assert not state[row, n:, :32].any() and not state[row, :n, 32:].any() and not state[row, n + m :].any()


def test_a_generator_records_and_checks_every_encoder(paths: list[str], tmp_path: Path) -> None:
    parts = FrozenParts(paths, None, None)
    encoder: Any = parts.caption_encoder(56)
    assert isinstance(encoder, SeveralCaptionEncoders) and parts.caption_encoder(56) is encoder
    assert set(parts.record()) == {"clip", "clip_1"} and parts.record()["clip_1"]["path"] == paths[1]
    with pytest.raises(UserError, match="has 56 channels, the denoiser expects 32"):
        FrozenParts(paths, None, None).caption_encoder(32)
    changed = FrozenParts(paths[::-1], None, None)
    with pytest.raises(UserError, match="trained with another clip"):
        changed.compare(parts.record())
    single = FrozenParts(paths[1], None, None)
    assert isinstance(single.caption_encoder(24), HuggingFaceCaptions)
    with pytest.raises(UserError, match="this needs the clip"):
        FrozenParts([], None, None).caption_encoder(1)


def test_a_generator_trains_on_several_with_dropped_captions_and_is_not_released(paths: list[str]) -> None:
    torch.manual_seed(0)
    denoiser = PRXDenoiser(4, 56, hidden_size=32, depth=1, num_heads=2)
    module = LatentDiffusionModule(denoiser, RectifiedFlow(), 4, FrozenParts(paths), caption_dropout=0.5)
    module.setup("fit")
    for value in denoiser.parameters():
        torch.nn.init.normal_(value, std=0.2)
    state, mask = SeveralCaptionEncoders([open_caption_encoder(path) for path in paths]).encode(TEXTS)
    batch = {
        "latent": torch.randn(4, 4, 4, 4),
        "caption_state": state,
        "caption_length": mask.sum(1),
        "sample_index": torch.arange(4),
    }
    losses = module.sample_losses(batch)
    empty, real = module.conditioning.empty()
    assert torch.isfinite(losses).all() and empty.shape == (1, int(real.sum()), 56)
    # Nonsense in the masked padding changes nothing, of kept captions and of dropped ones.
    noisy = state + 9 * (~mask[..., None])
    torch.testing.assert_close(module.sample_losses(batch | {"caption_state": noisy}), losses, rtol=1e-5, atol=1e-5)
    codec = DCCodec(latent_channels=4, widths=[8, 8, 16], layers=[0, 1, 1])
    with pytest.raises(UserError, match="several text encoders, or with one of transformers, cannot be released"):
        build_pipeline(denoiser, RectifiedFlow(), module.caption_encoder, codec, 16)
