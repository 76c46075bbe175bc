"""sentence-transformers gives open_clip's embeddings of captions and images."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from toys.encoders import tiny_clip
from toys.release_inputs import OTHER, answer, write_inputs
from toys.runs import run_without_us

from leam_mm.release.encoder_folder import write_encoder

EMBED = """
import json, numpy, open_clip, torch, transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("release", device="cpu")
towers, _, preprocess = open_clip.create_model_and_transforms("local-dir:release")
towers.eval()
captions, images = json.load(open("captions.json")), [Image.open(f"{number}.png") for number in range(3)]
text, pixels = open_clip.get_tokenizer("local-dir:release")(captions), torch.stack([preprocess(i) for i in images])
with torch.no_grad():
    expected = [towers.encode_text(text, normalize=True), towers.encode_image(pixels, normalize=True)]
found = [model.encode(captions), model.encode(images)]
words, pictures = (abs(one - two.numpy()).max() for one, two in zip(found, expected))
cosines = abs(model.similarity(*found) - found[0] @ found[1].T).max().item()
print("ANSWER", transformers.__version__, words, pictures, cosines)
"""


@pytest.fixture(scope="module")
def folder(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of a released encoder, with inputs."""
    pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("parent")
    write_encoder(tiny_clip(toy_tokenizer), folder / "release", "lab/model")  # type: ignore[arg-type]
    write_inputs(folder)
    return folder


def test_captions_and_images_are_embedded_as_in_open_clip(folder: Path) -> None:
    _, numbers = answer(run_without_us(EMBED, folder))
    assert all(number < 1e-5 for number in numbers)


def test_another_version_of_transformers_does_too(folder: Path) -> None:
    if not (other := os.environ.get(OTHER)):
        pytest.skip(f"{OTHER} names no folder with another version of transformers: make test-transformers4")
    if find_spec("datasets") is not None:
        pytest.skip(
            "datasets 5, which sentence-transformers imports, needs a later huggingface_hub than transformers 4"
        )
    version, numbers = answer(run_without_us(EMBED, folder, other))
    assert version.startswith("4.") and all(number < 1e-5 for number in numbers)
