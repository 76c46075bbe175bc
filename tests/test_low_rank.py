"""Low-rank additions: the base at the start, the sum after training, and nothing else moves."""

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from torch import nn
from toys.encoders import TEXT_LENGTH, VOCABULARY, hugging_face_encoder, random_texts, right_share, write_text_model
from toys.images import COLOURS, GERMAN
from toys.recipes import clip_recipe
from toys.shards import write_toy_shards

from leam_mm.checkpoint import load_module, read_checkpoint
from leam_mm.cli import main
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.encoders.low_rank import LowRank, LowRankAttention, LowRankLinear
from leam_mm.errors import UserError
from leam_mm.optim.ema import Ema
from leam_mm.optim.optimizer import decay_groups
from leam_mm.release.open_clip_folder import write_open_clip_folder

VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 32, "timm_model_name": "test_resnet", "timm_pool": ""}


def encoder(low_rank: LowRank | None = None, vision: dict[str, Any] | None = None) -> DualEncoder:
    torch.manual_seed(0)
    text = TextTower(context_length=TEXT_LENGTH, vocab_size=VOCABULARY, width=24, heads=2, layers=2)
    return DualEncoder(16, ImageTower(**(vision or VISION)), text, low_rank=low_rank).eval()


def stirred(model: DualEncoder) -> DualEncoder:
    """As after some training: no addition is zero."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "low_rank" in name:
            nn.init.normal_(weight, std=0.2)
    return model


def embed(model: DualEncoder, clip: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(4, 3, model.image_size, model.image_size, generator=generator).to(model.clip.logit_scale.dtype)
    text, length = random_texts()
    if clip is not None:
        return clip.encode_image(image, normalize=True), clip.encode_text(text, normalize=True)
    return model.encode_image(image), model.encode_text(text, length)


@torch.no_grad()
def test_training_starts_from_the_base() -> None:
    base, adapted = encoder(), encoder(LowRank(rank=3))
    weights = adapted.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
    added = weights.keys() - base.state_dict().keys()
    assert len(added) == 2 * 4 * 2 * 2 and all(
        "low_rank" in name for name in added
    )  # towers, matrices, blocks, A and B
    for mine, other in zip(embed(adapted), embed(base), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_merged_weights_give_the_same_embeddings_in_plain_open_clip(dtype: torch.dtype, limit: float) -> None:
    adapted = stirred(encoder(LowRank(rank=3, alpha=5.0)).to(dtype))
    merged = adapted.plain_clip()
    assert merged.state_dict().keys() == encoder().clip.state_dict().keys()
    assert not any(isinstance(layer, LowRankLinear | LowRankAttention) for layer in merged.modules())
    for mine, other in zip(embed(adapted), embed(adapted, merged), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=limit)
    for mine, other in zip(embed(adapted), embed(encoder().to(dtype)), strict=True):
        assert (mine - other).abs().max() > 0.01  # the additions matter


def test_gradients_are_those_of_the_plain_matrices() -> None:
    adapted = stirred(encoder(LowRank(rank=3, alpha=6.0)).double())
    plain: Any = copy.deepcopy(adapted.plain_clip()).requires_grad_(True)
    for features in (embed(adapted), embed(adapted, plain)):
        (features[0] @ features[1].T).square().sum().backward()
    layers = dict(plain.named_modules())
    for name, layer in adapted.clip.named_modules():
        if isinstance(layer, LowRankLinear | LowRankAttention):
            whole = layers[name].in_proj_weight if isinstance(layer, LowRankAttention) else layers[name].weight
            first, second = layer.low_rank_first, layer.low_rank_second
            torch.testing.assert_close(first.grad, 2 * second.T @ whole.grad)  # alpha / rank = 2
            torch.testing.assert_close(second.grad, 2 * whole.grad @ first.T)


def test_only_the_additions_are_trained() -> None:
    adapted = encoder(LowRank(rank=2, patterns=["visual.*.mlp.*", "transformer.*.attn"]))
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    layers = {name.rpartition(".")[0] for name in trained}
    assert all("low_rank" in name for name in trained)
    assert layers == {
        *(f"clip.visual.transformer.resblocks.{n}.mlp.{part}" for n in range(2) for part in ("c_fc", "c_proj")),
        *(f"clip.transformer.resblocks.{n}.attn" for n in range(2)),
    }
    assert {id(weight) for group in decay_groups(adapted) for weight in group["params"]} == {  # type: ignore[attr-defined]
        id(weight) for weight in adapted.parameters() if weight.requires_grad
    }


def test_averages_and_copies_keep_the_additions() -> None:
    adapted = encoder(LowRank(rank=2))
    average = Ema(adapted, 0.0)
    stirred(adapted)
    average.update(adapted)
    with torch.no_grad():
        for mine, other in zip(embed(average.model), embed(adapted), strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_running_statistics_of_the_frozen_tower_stay() -> None:
    adapted = encoder(LowRank(patterns=["transformer.*"]), RESNET)
    before = {name: value.clone() for name, value in adapted.state_dict().items() if "running" in name}
    adapted.train()
    embed(adapted)
    assert before and all(torch.equal(value, adapted.state_dict()[name]) for name, value in before.items())
    assert adapted.clip.transformer.training


def test_hugging_face_towers_take_additions(tmp_path: Any) -> None:
    model = hugging_face_encoder(write_text_model(tmp_path, "bert"))
    adapted = copy.deepcopy(model)
    LowRank(rank=2, patterns=["text.*.query", "text.*.value"]).add_to(adapted.clip)
    assert sum(isinstance(layer, LowRankLinear) for layer in adapted.modules()) == 4


@pytest.mark.parametrize("pattern", ["visual.*.nothing", "ln_final", "token_embedding"])
def test_patterns_without_a_matrix_are_refused_with_names(pattern: str) -> None:
    with pytest.raises(UserError, match=r"no matrix .* there are transformer\.resblocks\.0\.attn"):
        encoder(LowRank(patterns=[pattern]))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="low_rank: rank is"):
        LowRank(**settings)


def test_half_precision_and_gradients_through_the_image_tower() -> None:
    adapted = stirred(encoder(LowRank(rank=2))).train()
    with torch.autocast("cpu", torch.bfloat16):
        image, text = embed(adapted)
    (image @ text.T).float().sum().backward()
    for name, weight in adapted.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.isfinite().all())) == weight.requires_grad, name


def test_overlay_teaches_a_base_model_another_language(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    """An English base learns German by additions alone; what is released is plain open_clip."""
    recipe = clip_recipe(tmp_path / "base", toy_shards, toy_tokenizer, max_samples=120 * 32)
    recipe["data"]["init_args"] |= {"batch_size": 32}
    recipe["data"]["init_args"]["captions"]["languages"] = ["en"]
    recipe["checkpoint"], recipe["trainer"]["logger"] = {"every_n_train_steps": 1000}, False
    recipe["model"]["init_args"]["schedule"] = {"warmup_steps": 10}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    held_out = write_toy_shards(tmp_path / "held_out", samples=40, first=1000)
    names = [f"Quadrat, {GERMAN[colour]}" for colour in sorted(COLOURS)]

    def fit(*words: str) -> ContrastiveModule:
        main(["fit", "--config", str(tmp_path / "recipe.yaml"), *words])
        run = words[words.index("--trainer.default_root_dir") + 1] if words else tmp_path / "base"
        return load_module(run, ContrastiveModule)

    base = fit()
    write_open_clip_folder(base, tmp_path / "clip", "base")
    overlay = str(Path(__file__).parent.parent / "configs" / "overlay_lora.yaml")
    german = ["--data.init_args.captions.languages", "[de]", "--trainer.default_root_dir", str(tmp_path / "lora")]
    weights = ["--model.init_args.encoder.init_args.weights", str(tmp_path / "clip")]
    tuned = fit("--config", overlay, *weights, *german)
    assert right_share(base, held_out, names) < 0.75 < 0.9 < right_share(tuned, held_out, names)
    before, after = base.ema_encoder().state_dict(), tuned.ema_encoder().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    states = read_checkpoint(tmp_path / "lora")["optimizer_states"][0]["state"]
    assert len(states) == sum("low_rank" in name for name in tuned.encoder.state_dict())
    write_open_clip_folder(tuned, tmp_path / "tuned", "tuned")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'tuned'}").eval()
    with torch.no_grad():
        text, length = tuned.tokenizer.encode(names)
        mine = tuned.ema_encoder().encode_text(text, length)
        torch.testing.assert_close(mine, theirs.encode_text(text, normalize=True), rtol=0, atol=1e-5)
        image = torch.randn(4, 3, 16, 16)
        mine = tuned.ema_encoder().encode_image(image)
        torch.testing.assert_close(mine, theirs.encode_image(image, normalize=True), rtol=0, atol=1e-5)
