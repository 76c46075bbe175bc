import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys.encoders import tiny_clip
from toys.runs import run_without_us
from transformers import BertConfig, BertModel

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.tokenizer import TOKENIZER_FILES, Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.encoders.hugging_face_text import HuggingFaceText
from leam_mm.encoders.low_rank import LowRank
from leam_mm.encoders.pretrained_encoder import PretrainedEncoder
from leam_mm.errors import UserError
from leam_mm.release.open_clip_folder import CONFIG, WEIGHTS, plain_weights, write_open_clip_folder

CAPTIONS = ["Ein rotes Quadrat", "l’oiseau «bleu»", "Ένα κόκκινο τετράγωνο", "a " * 40, "", "Червен КВАДРАТ &amp; кръг"]


def test_open_clip_gives_our_embeddings_without_us(toy_tokenizer: Path, tmp_path: Path) -> None:
    modules = {"softmax": tiny_clip(toy_tokenizer), "sigmoid": tiny_clip(toy_tokenizer, init_bias=-10.0, seed=1)}
    for name, module in modules.items():
        write_open_clip_folder(module, tmp_path / name, "someone/a-name")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    code = """
import json, open_clip, torch
from PIL import Image
from safetensors.torch import save_file
for name in ["softmax", "sigmoid"]:
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + name)
    tokenizer = open_clip.get_tokenizer("local-dir:" + name)
    model.eval()
    image = preprocess(Image.open("picture.png"))[None]
    text = tokenizer(json.load(open("captions.json")))
    with torch.no_grad():
        save_file({"pixels": image, "text": text, "image_embedding": model.encode_image(image, normalize=True),
                   "text_embedding": model.encode_text(text, normalize=True),
                   "logits": model.get_logits(image, text)[0]}, name + ".safetensors")
"""
    run_without_us(code, tmp_path)
    decoded = ImageDecoding(32)((tmp_path / "picture.png").read_bytes(), np.random.default_rng(0))[None]
    for name, module in modules.items():
        theirs, encoder = load_file(tmp_path / f"{name}.safetensors"), module.ema_encoder()
        with torch.no_grad():
            image = encoder.normalise(decoded)
            text, length = module.tokenizer.encode(CAPTIONS)
            image_embedding, text_embedding = encoder.encode_image(image), encoder.encode_text(text, length)
            logits = encoder.scale * image_embedding @ text_embedding.T
            logits += encoder.bias if encoder.bias is not None else 0.0
        assert torch.allclose(theirs["pixels"], image, atol=1e-6)
        assert torch.equal(theirs["text"], text)
        assert torch.allclose(theirs["image_embedding"], image_embedding, atol=1e-5)
        assert torch.allclose(theirs["text_embedding"], text_embedding, atol=1e-5)
        assert torch.allclose(theirs["logits"], logits, atol=1e-3)


def test_folder_holds_nothing_executable(toy_tokenizer: Path, tmp_path: Path) -> None:
    module = tiny_clip(toy_tokenizer)
    extra = tmp_path / "tokenizer"
    extra.mkdir()
    for name in TOKENIZER_FILES:
        if (toy_tokenizer / name).is_file():
            (extra / name).write_bytes((toy_tokenizer / name).read_bytes())
    (extra / "tokenization_evil.py").write_text("print('hello')")
    module.tokenizer = Tokenizer(extra, context_length=12)
    write_open_clip_folder(module, tmp_path / "clip", "name")
    names = {file.name for file in (tmp_path / "clip").iterdir()}
    assert {CONFIG, WEIGHTS, "tokenizer.json"} <= names <= {CONFIG, WEIGHTS, *TOKENIZER_FILES}


def test_weights_and_config_say_what_the_encoder_says(toy_tokenizer: Path, tmp_path: Path) -> None:
    module = tiny_clip(toy_tokenizer, init_bias=-10.0)
    write_open_clip_folder(module, tmp_path / "clip", "name")
    weights = load_file(tmp_path / "clip" / WEIGHTS)
    assert weights.keys() == module.ema_encoder().clip.state_dict().keys()
    config = json.loads((tmp_path / "clip" / CONFIG).read_text())
    assert config["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "name"
    assert "patch_dropout" not in config["model_cfg"]["vision_cfg"]


def test_refusals_are_plain(toy_tokenizer: Path, tmp_path: Path) -> None:
    module = tiny_clip(toy_tokenizer)
    with pytest.raises(UserError, match="English vocabulary"):
        write_open_clip_folder(module, tmp_path / "clip", "")
    module.ema_encoder().clip.logit_scale.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"logit_scale.*diverged"):
        plain_weights(module.ema_encoder().clip)


def test_a_tower_of_transformers_is_released_with_its_config(toy_tokenizer: Path, tmp_path: Path) -> None:
    """From a folder of transformers to a folder that open_clip loads where the first one is gone."""
    opened = Tokenizer(toy_tokenizer, context_length=12)
    source = tmp_path / "bert"
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=opened.vocabulary + 3, max_position_embeddings=12, **sizes)).save_pretrained(source)
    torch.manual_seed(0)
    vision = ImageTower(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
    text = HuggingFaceText(str(source), context_length=12, pretrained=True)
    encoder = DualEncoder(16, vision, text, low_rank=LowRank(rank=2)).eval()
    for name, weight in encoder.named_parameters():
        if "low_rank" in name:
            torch.nn.init.normal_(weight, std=0.1)
    encoder.check_tokenizer(opened)
    module: Any = SimpleNamespace(ema_encoder=lambda: encoder, tokenizer=opened)
    write_open_clip_folder(module, tmp_path / "clip", "someone/a-name")
    shutil.rmtree(source)
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "clip").rglob("*.json"))
    (tmp_path / "clip" / "captions.json").write_text(json.dumps(CAPTIONS))
    code = """
import json, open_clip, torch
model = open_clip.create_model("local-dir:.").eval()
text = open_clip.get_tokenizer("local-dir:.")(json.load(open("captions.json")))
print(*model.encode_text(text, normalize=True).flatten().tolist())
"""
    theirs = torch.tensor([float(word) for word in run_without_us(code, tmp_path / "clip").split()]).reshape(-1, 16)
    with torch.no_grad():
        mine = encoder.encode_text(*opened.encode(CAPTIONS))
        again = PretrainedEncoder(str(tmp_path / "clip")).eval()  # and it is a start for further training
        repeated = again.encode_text(*opened.encode(CAPTIONS))
    assert torch.allclose(mine, theirs, atol=1e-5) and torch.allclose(repeated, theirs, atol=1e-5)


def test_the_config_of_a_text_tower_has_the_place_of_a_repository_on_the_hub(
    toy_tokenizer: Path, tmp_path: Path
) -> None:
    """open_clip reads owner/name from the root of a repository, or from a folder of that name, if there is one."""
    opened = Tokenizer(toy_tokenizer, context_length=12)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(vocab_size=opened.vocabulary, max_position_embeddings=12, **sizes)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    vision = ImageTower(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
    encoder = DualEncoder(16, vision, HuggingFaceText(str(tmp_path / "bert"), context_length=12)).eval()
    module: Any = SimpleNamespace(ema_encoder=lambda: encoder, tokenizer=opened)
    folder = tmp_path / "release"
    write_open_clip_folder(module, folder, "lab/model")
    root = (folder / "config.json").read_bytes()
    assert json.loads(root)["model_type"] == "bert" and (folder / "lab/model/config.json").read_bytes() == root
    code = 'import open_clip; print(open_clip.create_model("local-dir:.").text.config.hidden_size)'
    assert run_without_us(code, folder).split()[-1] == "16"


def test_the_english_vocabulary_needs_no_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = ImageTower(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
    encoder = DualEncoder(16, vision, TextTower(context_length=77, width=32, heads=2, layers=1)).eval()
    opened = Tokenizer("open_clip", 77)
    encoder.check_tokenizer(opened)
    module: Any = SimpleNamespace(ema_encoder=lambda: encoder, tokenizer=opened)
    write_open_clip_folder(module, tmp_path / "clip", "someone/a-name")
    assert {file.name for file in (tmp_path / "clip").iterdir()} == {CONFIG, WEIGHTS}
    texts = ["a diagram", "wow!", "x " * 100]
    model = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")(texts), normalize=True)
        assert torch.allclose(encoder.encode_text(*opened.encode(texts)), theirs, atol=1e-5)
