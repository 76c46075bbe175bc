"""Towers of transformers, built from tiny configs on the disk: same embeddings as open_clip, without a network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toys.encoders import HUGGING_FACE_LENGTH, HUGGING_FACE_VOCABULARY, hugging_face_encoder, write_text_model
from transformers import BertModel

from leam_mm.checkpoint import build_module
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower
from leam_mm.encoders.hugging_face_text import HuggingFaceText, transformers_config
from leam_mm.errors import UserError

LENGTHS = torch.tensor([2, 5, 20, 9, 5, 3, 20, 11])
PADDING = {"bert": 0, "xlm-roberta": 1, "mt5": 0}


def captions(pad: int) -> torch.Tensor:
    text = torch.randint(
        3, HUGGING_FACE_VOCABULARY, (len(LENGTHS), HUGGING_FACE_LENGTH), generator=torch.Generator().manual_seed(2)
    )
    return torch.where(torch.arange(HUGGING_FACE_LENGTH) < LENGTHS[:, None], text, pad)


@pytest.mark.parametrize(
    ("kind", "pooler"),
    [("bert", "mean_pooler"), ("bert", "cls_pooler"), ("xlm-roberta", "mean_pooler"), ("mt5", "mean_pooler")],
)
def test_embeddings_and_gradients_are_those_of_open_clip(tmp_path: Path, kind: str, pooler: str) -> None:
    model = hugging_face_encoder(write_text_model(tmp_path, kind), pooler=pooler).double()
    text = captions(PADDING[kind])
    answers = model.encode_text(text, LENGTHS), model.clip.encode_text(text, normalize=True)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-7)  # some of transformers' numbers are single precision
    weight, gradients = torch.randn_like(answers[0]), []
    for answer in answers:
        model.zero_grad()
        (answer * weight).sum().backward()
        gradients.append([value.grad for value in model.parameters()])
    for mine, other in zip(*gradients, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_fewer_tokens_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = hugging_face_encoder(write_text_model(tmp_path, "bert")), captions(0).repeat(64, 1)
    seen: list[int] = []
    model.clip.text.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    model.encode_text(text, LENGTHS.repeat(64))
    assert len(seen) > 1 and sum(seen) < 0.6 * text.numel()


def test_states_of_captions_do_not_depend_on_padding(tmp_path: Path) -> None:
    model, text = hugging_face_encoder(write_text_model(tmp_path, "xlm-roberta")), captions(1)
    whole, cut = model.text_states(text[1:2]), model.text_states(text[1:2, :5])
    assert whole.shape == (1, HUGGING_FACE_LENGTH, 24) == (1, HUGGING_FACE_LENGTH, model.text.width)
    torch.testing.assert_close(whole[:, :5], cut, rtol=0, atol=1e-5)


def test_weights_beside_the_config_are_the_start(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path, "bert")
    theirs = BertModel.from_pretrained(folder).state_dict()
    mine = hugging_face_encoder(folder, pretrained=True).clip.text.transformer.state_dict()
    assert mine.keys() <= theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    random = hugging_face_encoder(folder).clip.text.transformer.state_dict()
    assert not torch.equal(random["embeddings.word_embeddings.weight"], theirs["embeddings.word_embeddings.weight"])


def test_what_is_not_here_is_one_line_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="someone/model is neither a folder nor in the local cache: run `hf download"):
        hugging_face_encoder(Path("someone/model"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        hugging_face_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    transformers_config.cache_clear()
    with pytest.raises(UserError, match=r"config\.json cannot be used"):
        hugging_face_encoder(tmp_path)


def test_code_beside_the_config_is_not_run(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path / "model", "bert")
    code = '"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "model_type": "evil"'
    (folder / "config.json").write_text("{" + code + "}")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    transformers_config.cache_clear()
    with pytest.raises(UserError, match="cannot be used"):
        hugging_face_encoder(folder)
    assert not (tmp_path / "ran").exists()


def test_more_tokens_than_places_are_refused(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path, "xlm-roberta")
    vision = ImageTower(image_size=8, patch_size=8, width=16, layers=1, head_width=8)
    with pytest.raises(UserError, match=r"context_length is 32, but .* takes 30 tokens"):
        DualEncoder(16, vision, HuggingFaceText(str(folder), 32))


def test_a_recipe_names_it_and_a_step_trains_it(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path, "xlm-roberta")
    section = {
        "class_path": "leam_mm.contrastive_module.ContrastiveModule",
        "init_args": {
            "encoder": {
                "embed_dim": 16,
                "vision": {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
                "text": {
                    "model": str(folder),
                    "context_length": HUGGING_FACE_LENGTH,
                    "pooler": "cls_pooler",
                    "projection": "mlp",
                },
            },
            "loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"},
            "tokenizer": "tokenizer",
        },
    }
    module: Any = build_module(section)
    module.log = lambda *_, **__: None
    batch = {"image": torch.zeros(8, 3, 8, 8, dtype=torch.uint8), "text": captions(1), "text_length": LENGTHS}
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["text"].device.type == "meta" and moved["text_length"] is LENGTHS  # the host plans with them
    module.training_step(batch, 0).backward()
    assert all(
        weight.grad is not None for name, weight in module.encoder.clip.text.named_parameters() if "proj" in name
    )
