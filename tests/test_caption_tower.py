"""A text tower trained with the denoiser: it starts as the frozen one, learns, is averaged and used for sampling."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys.codecs import QUIET
from toys.encoders import tiny_clip
from toys.generators import FakeCodec, save_generator, sign_generator_section
from toys.recipes import codec_section, generator_section, stable_recipe
from toys.runs import assert_same_training, run_recorded

from leam_mm.captions.caption_encoder import CaptionEncoder, caption_tokens
from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.checkpoint import build_module, load_module
from leam_mm.data.batch import Decoding
from leam_mm.data.plan_datamodule import Loading, PlannedModule
from leam_mm.data.shard_index import ShardWriter
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.diffusion.guidance import Guidance
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.dual_encoder import TextTower
from leam_mm.errors import UserError
from leam_mm.optim.schedule import Schedule
from leam_mm.release.diffusers_folder import clip_text_model

TEXTS = ["ein rotes Quadrat", "a blue square left of l’oiseau", "", "a red square"]
SIZES = {"in_channels": 4, "context_dim": 32, "hidden_size": 32, "depth": 1, "num_heads": 2}


@pytest.fixture
def frozen(toy_tokenizer: Path) -> CaptionEncoder:
    return CaptionEncoder.from_module(tiny_clip(toy_tokenizer))  # type: ignore[arg-type]


def sizes(frozen: CaptionEncoder, layers: int = 2, **changes: int) -> dict[str, int]:
    vocabulary = frozen.tokenizer.vocabulary
    return {"context_length": 12, "vocab_size": vocabulary, "width": 32, "heads": 2, "layers": layers, **changes}


def started_tower(frozen: CaptionEncoder, layers: int = 2) -> CaptionTower:
    torch.manual_seed(1)
    tower = CaptionTower(TextTower(**sizes(frozen, layers)))
    tower.start(frozen)
    return tower


def generator(frozen: CaptionEncoder, tower: CaptionTower | None, **changes: Any) -> LatentDiffusionModule:
    torch.manual_seed(2)
    denoiser = PRXDenoiser(**SIZES)  # type: ignore[arg-type]
    for weight in denoiser.parameters():
        nn.init.normal_(weight, std=0.1)
    arguments: dict[str, Any] = {"latent_size": 4, "caption_dropout": 0.5, "ema": 0.5}
    arguments["schedule"] = Schedule(0, "constant")
    arguments["optimizer"] = lambda groups: torch.optim.AdamW(groups, lr=1e-2)
    module = LatentDiffusionModule(denoiser, RectifiedFlow(), caption_tower=tower, **{**arguments, **changes})
    module.frozen.opened = {"clip": frozen, "codec": FakeCodec()}
    return module


def batch(frozen: CaptionEncoder, texts: list[str]) -> dict[str, Any]:
    """A batch as of a latent folder: texts and their states by the frozen tower."""
    state, mask = frozen.encode(texts)
    latent = torch.randn(len(texts), 4, 4, 4, generator=torch.Generator().manual_seed(0))
    lengths = {"caption_state": state, "caption_length": mask.sum(1), "caption": texts}
    return {"latent": latent, **lengths, "sample_index": torch.arange(len(texts))}


def run(module: LatentDiffusionModule, steps: int, start: Path | None = None, **changes: Any) -> Trainer:
    """Train on the same batch at each step."""
    trainer = Trainer(accelerator="cpu", max_steps=steps, **QUIET, **changes)
    rows = [batch(module.frozen.opened["clip"], TEXTS * 2)]
    trainer.fit(module, DataLoader(rows, batch_size=None), ckpt_path=start)
    return trainer


@pytest.mark.parametrize("layers", [2, 3])
def test_tower_starts_with_the_states_of_the_frozen_one(frozen: CaptionEncoder, layers: int) -> None:
    state, mask = started_tower(frozen, layers)(*caption_tokens(TEXTS, frozen.tokenizer))
    wanted, wanted_mask = frozen.encode(TEXTS)
    assert torch.equal(mask, wanted_mask[:, : mask.shape[1]]) and not wanted_mask[:, mask.shape[1] :].any()
    torch.testing.assert_close(state[mask], wanted[wanted_mask], rtol=0, atol=5e-6)


def test_first_loss_is_that_of_stored_states(frozen: CaptionEncoder) -> None:
    """The same captions are dropped, and replaced by the same empty one."""
    rows = batch(frozen, TEXTS * 4)
    plain, learning = (generator(frozen, tower) for tower in (None, started_tower(frozen)))
    torch.testing.assert_close(learning.sample_losses(rows), plain.sample_losses(rows), rtol=1e-5, atol=1e-6)
    undropped = generator(frozen, None, caption_dropout=0.0).sample_losses(rows)
    assert not torch.allclose(plain.sample_losses(rows), undropped)


def test_loss_of_a_sample_does_not_depend_on_its_batch(frozen: CaptionEncoder) -> None:
    rows, module = batch(frozen, TEXTS), generator(frozen, started_tower(frozen, 3))
    alone = [{name: value[n : n + 1] for name, value in rows.items()} for n in range(len(TEXTS))]
    torch.testing.assert_close(torch.cat([module.sample_losses(row) for row in alone]), module.sample_losses(rows))


def test_tower_learns_and_its_average_encodes_the_prompts(frozen: CaptionEncoder) -> None:
    before = {name: value.clone() for name, value in frozen.encoder.state_dict().items()}
    module = generator(frozen, CaptionTower(TextTower(**sizes(frozen, 3))))
    run(module, 3)
    own, average = module.denoiser.caption_tower, module.ema_denoiser().caption_tower
    assert own is not None and average is not None
    moved = [name for name, value in own.named_parameters() if not torch.equal(value, average.get_parameter(name))]
    assert len(moved) == len(list(own.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in frozen.encoder.state_dict().items())
    state, mask = average(*caption_tokens(TEXTS, frozen.tokenizer))
    states, states_mask = module.caption_encoder.encode(TEXTS)
    torch.testing.assert_close(states[states_mask], state[mask], rtol=0, atol=5e-6)
    assert (states - frozen.encode(TEXTS)[0])[states_mask].abs().max() > 1e-3
    assert torch.equal(module.conditioning.empty()[0], module.caption_encoder.encode([""])[0])
    released = clip_text_model(module.caption_encoder.encoder, frozen.tokenizer.path)
    text = frozen.tokenizer.encode([text.lower() for text in TEXTS])[0]
    torch.testing.assert_close(
        released(input_ids=text).last_hidden_state[states_mask], states[states_mask], rtol=0, atol=1e-5
    )


def test_tower_learns_to_separate_captions_that_the_frozen_one_does_not(frozen: CaptionEncoder) -> None:
    """If frozen states depend on the length alone, the prediction is the mean; a trained tower separates captions."""
    with torch.no_grad():
        frozen.encoder.clip.token_embedding.weight[:] = 0.1
    texts = ["red square", "blue square"]
    rows = batch(frozen, texts * 8)
    rows["latent"] = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None, None].expand(-1, 4, 4, 4)
    last = {}
    for name, tower in (("frozen", None), ("learning", started_tower(frozen))):
        module = generator(frozen, tower, caption_dropout=0.0)
        module.process.time = lambda uniform, _: torch.full_like(
            uniform, 0.99
        )  # where the noisy latents do not separate them
        weights = torch.optim.AdamW(module.denoiser.parameters(), lr=3e-3)
        for step in range(60):
            rows["sample_index"] = torch.arange(16) + 16 * step
            loss = module.sample_losses(rows).mean()
            weights.zero_grad()
            loss.backward()
            weights.step()
        last[name] = float(loss.detach())
    assert last["learning"] < 0.5 * last["frozen"]


def test_learning_rate_is_a_share_of_the_denoisers(frozen: CaptionEncoder) -> None:
    module = generator(frozen, CaptionTower(TextTower(**sizes(frozen)), rate=0.25))
    run(module, 1)
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    tower = set(module.denoiser.caption_tower.parameters())  # type: ignore[union-attr]
    rates = {weight in tower: group["initial_lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates == {True: 0.25e-2, False: 1e-2}
    with pytest.raises(UserError, match=r"rate is 0"):
        CaptionTower(TextTower(**sizes(frozen)), rate=0.0)


def test_resumed_run_equals_an_unbroken_one(frozen: CaptionEncoder, tmp_path: Path) -> None:
    modules = [generator(frozen, CaptionTower(TextTower(**sizes(frozen)))) for _ in range(3)]
    run(modules[0], 4)
    trainer = run(modules[1], 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    run(modules[2], 4, tmp_path / "half.ckpt")
    whole, resumed = modules[0].state_dict(), modules[2].state_dict()
    assert any("caption_tower" in name for name in whole)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_other_sizes_and_encoders_are_refused(frozen: CaptionEncoder) -> None:
    for changes, reason in (({"width": 16}, r"text\.width is 16"), ({"layers": 1}, "at least as many")):
        with pytest.raises(UserError, match=reason):
            CaptionTower(TextTower(**sizes(frozen, **changes))).start(frozen)
    with pytest.raises(UserError, match="names another kind"):
        started_tower(frozen).start(SimpleNamespace(encoder=None))
    frozen.encoder._config["quick_gelu"] = True  # as OpenAI's weights have it
    with pytest.raises(UserError, match="another activation"):
        started_tower(frozen)
    del frozen.encoder._config["quick_gelu"]
    sharded = generator(frozen, started_tower(frozen))
    sharded._device_mesh = object()  # type: ignore[assignment]
    with pytest.raises(UserError, match="is not sharded"):
        sharded.configure_model()


def test_tuned_generator_uses_the_tower_of_its_base(frozen: CaptionEncoder, tmp_path: Path) -> None:
    first = sign_generator_section(SIZES, caption_tower={"text": sizes(frozen)})
    trained: Any = build_module(first)
    for weight in trained.parameters():
        nn.init.normal_(weight, std=0.1)
    base = save_generator(trained, first, tmp_path / "base")
    pretrained = "leam_mm.denoisers.pretrained_denoiser.PretrainedDenoiser"
    section = sign_generator_section({"class_path": pretrained, "init_args": {"weights": str(base)}})

    def build() -> Any:
        module: Any = build_module(section)
        module.frozen.opened = {"clip": frozen, "codec": FakeCodec()}
        return module

    with pytest.raises(UserError, match="reads captions with a caption tower"):
        run(build(), 1)
    section["init_args"]["caption_tower"] = {"text": sizes(frozen), "weights": str(base), "trained": False}
    module = build()
    run(module, 2)
    wanted = load_module(base, LatentDiffusionModule).ema_denoiser().caption_tower
    assert wanted is not None
    for denoiser in (module.denoiser, module.ema_denoiser()):
        assert all(
            torch.equal(a, b) for a, b in zip(denoiser.caption_tower.parameters(), wanted.parameters(), strict=True)
        )
    assert not torch.equal(module.denoiser.model.img_in.weight, module.ema_denoiser().model.img_in.weight)
    with pytest.raises(UserError, match="and no caption_tower"):
        module.sample(TEXTS, 0, 2, Guidance(2.0, weaker=str(base)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_train_the_tower_as_one_does(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = stable_recipe(tmp_path / "clip", toy_shards, toy_tokenizer, max_samples=16)
    text = recipe["model"]["init_args"]["encoder"]["text"]
    clip = run_recorded(recipe)
    codec = run_recorded(
        {**stable_recipe(tmp_path / "codec", toy_shards, toy_tokenizer, max_samples=16), "model": codec_section()}
    )
    model = generator_section(clip, codec)
    model["init_args"]["caption_tower"] = {"text": text}
    made = []
    for name, overlays in (("one", ()), ("two", ("overlay_two_ranks.yaml",))):
        recipe = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=32)
        made.append(run_recorded({**recipe, "model": model}, *overlays))
    assert_same_training(*made)


def test_tokens_are_those_of_the_frozen_encoder(frozen: CaptionEncoder) -> None:
    """Captions are cleaned as in the released pipeline, and cut to the longest of the batch."""
    text, length = caption_tokens(["  A RED (square) ", ""], frozen.tokenizer)
    wanted, wanted_length = frozen.tokenizer.encode(["a red square", ""])
    assert torch.equal(length, wanted_length) and text.shape[1] == length.max()
    assert torch.equal(text, wanted[:, : text.shape[1]])


class Stored(Decoding):
    """A latent and a text."""

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> dict[str, Any]:
        """Return a text that needs cleaning."""
        latent = torch.full((4, 4, 4), int(members["n"]) / 8)
        return {"latent": latent, "caption": f"{TEXTS[index % 4]} <b>", "sample_index": index}


def stored_latents(folder: Path, workers: int) -> PlannedModule:
    with ShardWriter(folder, 4) as writer:
        for number in range(8):
            writer.write(f"{number:06d}", {"n": str(number).encode()})
    return PlannedModule(folder, None, 4, 8, Stored(1), Stored(1), Loading(workers))


def test_worker_processes_tokenize(frozen: CaptionEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training process tokenizes the empty caption only; losses equal those of tokens made in this process."""
    seen: list[list[str]] = []

    def spy(captions: list[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        seen.append(captions)
        return caption_tokens(captions, tokenizer)

    monkeypatch.setattr("leam_mm.captions.conditioning.caption_tokens", spy)
    module, data = generator(frozen, started_tower(frozen)), stored_latents(tmp_path / "shards", 1)
    Trainer(accelerator="cpu", max_steps=2, **QUIET).fit(module, datamodule=data)
    assert seen == [[""]]  # once; the worker process has a list of its own
    batch = next(iter(data.train_dataloader()))
    assert batch["prompt"].shape == (4, int(batch["prompt_length"].max()))
    expected = module.sample_losses(batch)
    del batch["prompt"]
    assert torch.equal(module.sample_losses(batch), expected) and len(seen[-1]) == 4
    monkeypatch.undo()
    module.conditioning.tokenize_in_workers(data)
    pickled = pickle.loads(pickle.dumps(data.decode))  # as a loader with forkserver does
    assert torch.equal(pickled.prompts(TEXTS)[0], caption_tokens(TEXTS, frozen.tokenizer)[0])
