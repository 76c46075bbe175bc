"""The memory estimate against what autograd keeps in real steps on the CPU, and identities of its parts."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from leam_mm.callbacks.compilation import trained_blocks
from leam_mm.checkpoint import build_module
from leam_mm.planning import counted_flops as counted
from leam_mm.planning.memory_fit import MemoryModel, measure, memory_model, usable
from leam_mm.planning.recipe_file import read_recipe
from leam_mm.planning.saved_activations import SavedTensors, count_saved

CONFIGS = Path(__file__).parent.parent / "configs"
BATCH = 16


def small_clip() -> dict[str, Any]:
    content = read_recipe([CONFIGS / "clip_vit_b32.yaml"])
    encoder = content["model"]["init_args"]["encoder"]
    encoder["vision"] |= {"layers": 4, "width": 192, "image_size": 96, "patch_size": 16}
    encoder["text"] |= {"layers": 3, "width": 128, "heads": 4, "context_length": 32, "vocab_size": 512}
    return content


def small_denoiser() -> dict[str, Any]:
    content = read_recipe([CONFIGS / "generator_one_gpu.yaml"])
    sizes = {"hidden_size": 128, "depth": 4, "num_heads": 4}
    content["model"]["init_args"]["denoiser"]["init_args"] |= sizes
    content["model"]["init_args"]["latent_size"] = 16
    return content


def step(module: Any, batch: int) -> Any:
    """One real forward pass on the CPU; the result keeps its graph alive."""
    if hasattr(module, "encoder"):
        encoder = module.encoder
        image = torch.randn(batch, 3, encoder.image_size, encoder.image_size)
        text = torch.randint(1, 100, (batch, encoder.context_length))
        lengths = torch.full((batch,), encoder.context_length)
        return encoder.encode_image(image).sum() + encoder.encode_text(text, lengths).sum()
    denoiser, side = module.denoiser, module.latent_size
    state, mask = torch.randn(batch, counted.DEFAULT_CAPTION, denoiser.context_dim), torch.ones(
        batch, counted.DEFAULT_CAPTION, dtype=torch.bool
    )  # fmt: skip
    latent = torch.randn(batch, denoiser.in_channels, side, side)
    return denoiser(latent, torch.rand(batch), state, mask).sum()


def really_saved(module: Any, autocast: bool, batch: int = BATCH) -> int:
    """Bytes of all tensors that autograd saves in a real step, weights left out."""
    saved = SavedTensors()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.add(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = step(module, batch)
    assert output.requires_grad
    return saved.size


@pytest.mark.parametrize("make", [small_clip, small_denoiser])
def test_activations_are_those_of_a_real_step_in_full_precision(make: Any) -> None:
    content = make()
    content["trainer"]["precision"] = "32-true"
    model = memory_model(content)
    assert BATCH * model.activations.kept == pytest.approx(
        really_saved(build_module(content["model"]).train(), False), rel=0.2
    )
    assert model.copy_bytes == 0


@pytest.mark.parametrize("make", [small_clip, small_denoiser])
@pytest.mark.parametrize("batch", [1, 16])
def test_activations_and_copies_are_those_of_a_real_step_in_mixed_precision(make: Any, batch: int) -> None:
    content = make()
    model = memory_model(content)
    expected = batch * model.activations.kept + model.weights * model.copy_bytes
    assert expected == pytest.approx(really_saved(build_module(content["model"]).train(), True, batch), rel=0.2)


def test_a_block_of_a_vision_transformer_keeps_sixteen_channels_per_token() -> None:
    # 34 bytes per token and channel (2205.05198, section 4.1), of which two are masks of dropout, at two bytes each.
    content = small_clip()
    module = counted.meta_module(content["model"]).train()
    saved = measure(module, torch.float32)
    tokens, width = 1 + (96 // 16) ** 2, 192
    assert saved.blocks[0] == pytest.approx(counted.PAIR * 16 * 4 * tokens * width, rel=0.01)


def test_recomputed_blocks_keep_their_inputs() -> None:
    content = small_denoiser()
    content["trainer"]["precision"] = "32-true"
    model = memory_model(content)
    module: Any = build_module(content["model"]).train()
    for block in trained_blocks(module):
        block.forward = (lambda forward: lambda *a, **k: checkpoint(forward, *a, use_reentrant=False, **k))(
            block.forward
        )
    outside = really_saved(module, False)  # what is saved outside of the blocks
    inputs = sum(size for size in measure(counted.meta_module(content["model"]).train(), torch.float32).inputs)
    expected = outside + BATCH * (inputs / counted.PAIR + model.activations.block)
    assert BATCH * model.activations.checkpointed == pytest.approx(expected, rel=0.2)
    assert model.activations.checkpointed < 0.6 * model.activations.kept


def test_counting_needs_no_attention_matrix() -> None:
    query = torch.zeros(1, 2, 512, 8, device="meta", requires_grad=True)
    with count_saved() as saved:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert saved.size == 512 * 2 * 8 * 4 * 2 + 512 * 2 * 4  # queries (= keys = values), output, one number a row


def model(**values: Any) -> MemoryModel:
    from leam_mm.planning.memory_fit import Activations

    defaults: dict[str, Any] = {
        "weights": 10**9, "trained": 10**9, "largest_block": 10**7, "averages": 1, "state_bytes": 8, "weight_bytes": 4,
        "copy_bytes": 2, "activations": Activations(1e8, 2e7, 1e7), "batch_size": 1024, "input_bytes": 0,
    }  # fmt: skip
    return MemoryModel(**defaults | values)


def test_states_of_adamw_take_twenty_two_bytes_a_weight() -> None:
    parts = model().parts(devices=1, micro_batch=1)
    states = [
        parts[name] for name in ("weights", "gradients", "optimizer states", "averages", "copies in half precision")
    ]
    assert states == [4e9, 4e9, 8e9, 4e9, 2e9]
    assert "buckets of gradients" not in parts and model().parts(2, 1)["buckets of gradients"] == 4e9


def test_sharding_divides_states_and_gathers_blocks() -> None:
    whole, parts = model().parts(8, 1), model().parts(8, 1, sharded=True)
    for name in ("weights", "gradients", "optimizer states", "averages"):
        assert parts[name] == pytest.approx(whole[name] / 8)
    assert parts["gathered blocks"] == 3 * 4e7
    assert parts["activations"] == whole["activations"]


def test_largest_micro_batch_fits_and_the_next_does_not() -> None:
    for choice in ({}, {"checkpointing": True}, {"sharded": True}):
        found = model().largest_micro_batch(80e9, 8, **choice)
        assert model().total(8, found, **choice) <= usable(80e9)
        assert found == 128 or model().total(8, found + 1, **choice) > usable(80e9)
    assert model().largest_micro_batch(10e9, 8) == 0  # the states alone do not fit
    assert model().largest_micro_batch(80e9, 8, checkpointing=True) >= model().largest_micro_batch(80e9, 8)


def test_features_of_the_contrastive_loss_grow_with_the_batch() -> None:
    small, large = (model(embed_dim=512, batch_size=size).parts(8, 1)["features and logits"] for size in (8192, 16384))
    tiles = 3 * 4 * 1024**2
    assert large - tiles == pytest.approx(2 * (small - tiles))


def test_recipes_are_read() -> None:
    sharded = memory_model(read_recipe([CONFIGS / "generator_cluster_7b.yaml"]))
    assert sharded.sharded and sharded.checkpointing and sharded.averages == 1
    assert sharded.total(128, 16) < usable(80e9) < sharded.total(128, 16, sharded=False)
    masked = memory_model(read_recipe([CONFIGS / "generator_8gpu.yaml"]))
    plain = read_recipe([CONFIGS / "generator_8gpu.yaml"])
    with contextlib.suppress(KeyError):
        del plain["model"]["init_args"]["techniques"]
    # Tokens are masked for a part of the run only: the rest decides what fits.
    assert masked.activations.kept == pytest.approx(memory_model(plain).activations.kept, rel=0.05)
    assert any("fits" in line for line in sharded.report(80e9, 128))
