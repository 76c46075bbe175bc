"""ONNX files of a release agree with torch, and draw our images with onnxruntime and NumPy alone."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys.codecs import tiny_dc, tiny_kl
from toys.encoders import tiny_clip, write_caption_encoder
from toys.generators import tiny_generator
from toys.recipes import ROOT
from toys.runs import run_without_us

from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower
from leam_mm.encoders.hugging_face_text import HuggingFaceText
from leam_mm.release.diffusers_folder import write_diffusers_folder
from leam_mm.release.onnx_folder import export_parts, write_onnx_folder
from leam_mm.release.onnx_parts import OnnxPart, encoder_parts, generator_parts

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library)

PROMPTS = ["ein rotes quadrat", "a blue square left of a circle"]
STEPS, GUIDANCE, SEED = 4, 3.0, 7


def run(file: Path, **inputs: Any) -> Tensor:
    """The output of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: np.asarray(value) for name, value in inputs.items()})[0])


@pytest.fixture(scope="module")
def generator(toy_tokenizer: Path) -> LatentDiffusionModule:
    return tiny_generator(toy_tokenizer, tiny_dc(), shift=2.0)


@pytest.fixture(scope="module")
def release(generator: LatentDiffusionModule, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with an encoder and a generator."""
    folder = tmp_path_factory.mktemp("release") / "release"
    write_diffusers_folder(generator, folder)
    encoder: Any = tiny_clip(toy_tokenizer)
    records = write_onnx_folder(folder / "onnx", encoder, generator)
    assert [record.reason for record in records] == [""] * 6, records
    assert all(record.max_difference is not None and record.max_difference < 1e-4 for record in records)
    return folder


@torch.no_grad()
def test_embeddings_are_ours(release: Path, toy_tokenizer: Path) -> None:
    module = tiny_clip(toy_tokenizer)
    encoder = module.ema_encoder()
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    pixels = encoder.normalise(images)
    found = run(release / "onnx" / "vision_model.onnx", pixel_values=pixels)
    torch.testing.assert_close(found, encoder.encode_image(pixels), rtol=0, atol=1e-4)
    text, length = module.tokenizer.encode([*PROMPTS, "", "long " * 30])
    found = run(release / "onnx" / "text_model.onnx", input_ids=text)
    torch.testing.assert_close(found, encoder.encode_text(text, length), rtol=0, atol=1e-4)
    found = run(release / "onnx" / "text_model.onnx", input_ids=text[:1, : length[0]])
    torch.testing.assert_close(found, encoder.encode_text(text[:1], length[:1]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_parts_of_the_generator_are_ours_at_other_sizes(release: Path, generator: LatentDiffusionModule) -> None:
    latent = torch.randn(1, 4, 4, 12)
    image = generator.codec.decode(latent)
    torch.testing.assert_close(run(release / "onnx" / "vae_decoder.onnx", latent=latent), image, rtol=0, atol=1e-4)
    found = run(release / "onnx" / "vae_encoder.onnx", image=image)
    torch.testing.assert_close(found, generator.codec.encode(image), rtol=0, atol=1e-4)
    states, mask = generator.caption_encoder.encode(["a b", "c"])
    time, latent = torch.tensor([0.3, 0.9]), torch.randn(2, 4, 4, 12)
    expected = generator.ema_denoiser()(latent, time, states, mask)
    inputs = {"sample": latent, "time": time, "encoder_attention_mask": mask}
    for wrong in (0.0, 5.0):  # states in the padding have no influence
        padded = torch.where(mask[..., None], states, wrong)
        found = run(release / "onnx" / "denoiser.onnx", encoder_hidden_states=padded, **inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_lines_of_the_docs_draw_our_images_without_torch(release: Path, generator: LatentDiffusionModule) -> None:
    page = (ROOT / "docs" / "onnx.md").read_text()
    lines = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    noise = PhiloxStream().normal(SEED, torch.arange(len(PROMPTS)), "sample", (4, 8, 8))
    np.save(release.parent / "noise.npy", noise.numpy())
    (release.parent / "prompts.json").write_text(json.dumps(PROMPTS))
    check = f"""
import sys
sys.modules["torch"] = None
exec(open("lines.py").read())
assert pixels.shape == (32, 32, 3)
cases = zip(json.load(open("prompts.json")), np.load("noise.npy"))
images = [sample(prompt, noise[None], {STEPS}, {GUIDANCE}) for prompt, noise in cases]
np.save("images.npy", np.stack(images))
"""
    (release.parent / "lines.py").write_text(lines)
    run_without_us(with_libraries(check), release.parent)
    theirs = torch.from_numpy(np.load(release.parent / "images.npy")) / 2 + 0.5
    ours = generator.sample(PROMPTS, SEED, STEPS, GUIDANCE)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def with_libraries(code: str) -> str:
    """Code that finds the libraries that this process found, without our package."""
    import onnxruntime

    return f"import sys; sys.path.append({str(Path(onnxruntime.__file__).parents[1])!r})\n" + code


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("network", "names"), [("unet", ["denoiser"]), ("sd3", ["denoiser"]), ("prx", ["vae_decoder", "vae_encoder"])]
)
def test_other_denoisers_and_codecs_are_exported(
    toy_tokenizer: Path, tmp_path: Path, network: str, names: list[str]
) -> None:
    module = tiny_generator(toy_tokenizer, tiny_kl(), 1.0, network=network)
    records = export_parts((part for part in generator_parts(module) if part.name in names), tmp_path)
    assert [record.name for record in records] == names
    for record in records:
        assert record.max_difference is not None and record.max_difference < 1e-4 and not record.reason, record


@pytest.mark.slow
def test_text_encoders_of_transformers_are_exported(toy_tokenizer: Path, tmp_path: Path) -> None:
    captions = HuggingFaceCaptions(str(write_caption_encoder(tmp_path / "t5")), context_length=12)
    module = tiny_generator(toy_tokenizer, tiny_dc(), 1.0)
    module.frozen.opened["clip"] = captions
    (record,) = export_parts([next(generator_parts(module))], tmp_path)
    assert not record.reason and record.inputs["attention_mask"] == ["batch", "tokens"]
    state, mask = captions.encode(PROMPTS)
    tokens = captions.tokenizer(PROMPTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    found = run(tmp_path / "text_encoder.onnx", input_ids=tokens["input_ids"], attention_mask=mask)
    torch.testing.assert_close(found, state, rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_text_towers_of_transformers_are_exported(tmp_path: Path) -> None:
    folder = write_caption_encoder(tmp_path / "bert", "bert")
    vision = ImageTower(image_size=8, patch_size=8, width=16, layers=1, head_width=8)
    encoder = DualEncoder(16, vision, HuggingFaceText(str(folder), 12)).eval()
    module: Any = SimpleNamespace(ema_encoder=lambda: encoder, tokenizer=Tokenizer(folder, 12))
    records = export_parts(encoder_parts(module), tmp_path)
    assert not any(record.reason for record in records), records
    text, length = module.tokenizer.encode(PROMPTS)
    found = run(tmp_path / "text_model.onnx", input_ids=text)
    torch.testing.assert_close(found, encoder.encode_text(text, length), rtol=0, atol=1e-4)


class Untranslatable(nn.Module):
    """A network with a step that depends on a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Fickle(nn.Module):
    """A network that computes something else after its export."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else x + 0.01


@pytest.mark.parametrize(("network", "reason"), [(Untranslatable(), "cannot be exported"), (Fickle(), "differs")])
def test_what_cannot_be_exported_is_named_and_left_out(tmp_path: Path, network: nn.Module, reason: str) -> None:
    part = OnnxPart("odd", network, {"x": torch.ones(2, 3)}, {"x": torch.ones(4, 3)}, "y", {"x": {0: "batch"}})
    (record,) = export_parts([part], tmp_path)
    assert reason in record.reason and not record.files and record.max_difference is None
    assert not list(tmp_path.iterdir())


def test_large_weights_lie_beside_the_file(tmp_path: Path) -> None:
    inputs, others = {"input": torch.ones(2, 64)}, {"input": torch.randn(4, 64)}
    part = OnnxPart("big", nn.Linear(64, 64), inputs, others, "y", {"input": {0: "batch"}})
    (record,) = export_parts([part], tmp_path, embedded=1000)
    assert record.files == ["big.onnx", "big.onnx.data"] and record.max_difference is not None
    (record,) = export_parts([part], tmp_path, embedded=1 << 20)
    assert (tmp_path / "big.onnx").stat().st_size > 64 * 64 * 4
