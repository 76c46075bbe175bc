"""Streams of random numbers: which one a run has, and that a checkpoint keeps it."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from toys.codecs import codec_module
from toys.generators import SignLatents, generator_module, save_generator, sign_batch, sign_generator_section
from toys.runs import assert_equal

from leam_mm.checkpoint import EVIDENCE, build_module, load_module
from leam_mm.data.batch import collate_samples
from leam_mm.data.random_stream import RECORD, NumpyStream, PhiloxStream, RandomStream, recorded_stream
from leam_mm.errors import UserError

# Of samples 0 and 2^33.
UNIFORM = {
    "philox4x32-10": [0.0315738320350647, 0.7882466912269592],
    "numpy": [0.8567570447921753, 0.6022694110870361],
}
NORMAL = {
    "philox4x32-10": [
        [-0.10116236, -0.41743037, -0.25809488, 0.44132933],
        [0.47904691, 0.50885099, 0.64246833, -0.05490185],
    ],
    "numpy": [[0.32129920, -1.48170483, -0.54883331, -1.12698972], [-1.0217638, -0.06581333, -2.83533430, -0.63050461]],
}
SUBSET = {"philox4x32-10": [[0, 4, 8, 10], [0, 3, 6, 8]], "numpy": [[1, 5, 9, 10], [3, 6, 7, 9]]}

STREAMS = pytest.mark.parametrize("stream", [PhiloxStream(), NumpyStream()], ids=lambda stream: stream.name)


@STREAMS
def test_noise_belongs_to_the_sample_not_to_the_batch(stream: RandomStream) -> None:
    whole = stream.normal(1, torch.arange(6), "noise", (2, 3))
    assert torch.equal(stream.normal(1, torch.tensor([4, 0]), "noise", (2, 3)), whole[[4, 0]])
    assert whole.shape == (6, 2, 3) and whole.dtype == torch.float32
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, stream.normal(2, torch.arange(6), "noise", (2, 3)))
    assert not torch.equal(whole, stream.normal(1, torch.arange(6), "time", (2, 3)))


@STREAMS
def test_a_run_in_double_precision_sees_the_same_numbers(stream: RandomStream) -> None:
    index = torch.arange(5)
    expected = stream.normal(1, index, "noise", (4, 9)), stream.uniform(1, index, "time")
    torch.set_default_dtype(torch.float64)  # as precision 64-true does in a training step
    try:
        found = stream.normal(1, index, "noise", (4, 9)), stream.uniform(1, index, "time")
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@STREAMS
def test_noise_is_standard_normal(stream: RandomStream) -> None:
    noise = stream.normal(0, torch.arange(100), "noise", (1000,)).double()
    assert abs(noise.mean()) < 0.015 and abs(noise.var() - 1) < 0.03
    assert abs((noise**4).mean() - 3) < 0.15
    assert abs((noise[:-1] * noise[1:]).mean()) < 0.015  # neighbours share nothing


@STREAMS
def test_uniform_lies_in_the_open_interval(stream: RandomStream) -> None:
    uniform = stream.uniform(0, torch.arange(5000), "time")
    assert uniform.dtype == torch.float32 and uniform.min() > 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02 and abs(uniform.var() - 1 / 12) < 0.01
    assert torch.equal(uniform[7:9], stream.uniform(0, torch.tensor([7, 8]), "time"))
    assert float(torch.special.ndtri(stream.uniform(0, torch.arange(100), "time")).abs().max()) < 6


@STREAMS
def test_subsets_belong_to_the_sample_and_rise(stream: RandomStream) -> None:
    numbers = torch.tensor([3, 9, 3])
    chosen = stream.subset(5, numbers, "tokens", 20, 7)
    assert chosen.shape == (3, 7) and (chosen.diff(dim=1) > 0).all() and chosen.max() < 20
    assert torch.equal(chosen[0], chosen[2]) and not torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[1:2], stream.subset(5, numbers[1:2], "tokens", 20, 7))
    assert not torch.equal(chosen, stream.subset(6, numbers, "tokens", 20, 7))
    assert not torch.equal(chosen, stream.subset(5, numbers, "other", 20, 7))
    assert torch.equal(stream.subset(5, numbers[:1], "tokens", 4, 4), torch.arange(4)[None])


def test_streams_never_change() -> None:
    """Runs resume with these numbers, on any version: a change here needs a stream with another name."""
    index = torch.tensor([0, 1 << 33])
    philox, numpy = PhiloxStream(), NumpyStream()
    assert philox.uniform(3, index, "time").tolist() == UNIFORM["philox4x32-10"]
    assert numpy.uniform(3, index, "time").tolist() == UNIFORM["numpy"]
    for stream in (philox, numpy):
        found = stream.normal(3, index, "noise", (2, 2)).flatten(1)
        torch.testing.assert_close(found, torch.tensor(NORMAL[stream.name]), rtol=1e-6, atol=1e-6)
        assert stream.subset(3, index, "tokens", 12, 4).tolist() == SUBSET[stream.name]


def test_a_checkpoint_without_a_name_has_numpys_stream() -> None:
    assert isinstance(recorded_stream({}), NumpyStream)
    for stream in (PhiloxStream(), NumpyStream()):
        assert type(recorded_stream({RECORD: stream.name})) is type(stream)
    with pytest.raises(UserError, match="'mersenne', which this version does not have"):
        recorded_stream({RECORD: "mersenne"})


def train(folder: Path, epochs: int, stream: RandomStream | None = None, ckpt_path: Path | None = None) -> dict:
    """Train a generator of its own, and return its last checkpoint, which is in ``last.ckpt``."""
    module = generator_module()
    if stream is not None:
        module._use_stream(stream)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, enable_checkpointing=False, **quiet
    )
    data = DataLoader(SignLatents(48), batch_size=16, collate_fn=collate_samples)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    folder.mkdir(exist_ok=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("stream", "named"), [(PhiloxStream(), True), (NumpyStream(), True), (NumpyStream(), False)])
def test_a_run_resumes_with_the_stream_that_it_began_with(stream: RandomStream, named: bool, tmp_path: Path) -> None:
    begun = train(tmp_path / "begun", 1, stream)
    assert begun[EVIDENCE][RECORD] == stream.name
    if not named:  # as checkpoints were before they had names
        del begun[EVIDENCE][RECORD]
    torch.save(begun, tmp_path / "old.ckpt")
    whole, resumed = train(tmp_path / "whole", 2, stream), train(tmp_path / "resumed", 2, None, tmp_path / "old.ckpt")
    assert resumed[EVIDENCE][RECORD] == stream.name
    for name in ("state_dict", "optimizer_states"):
        assert_equal(resumed[name], whole[name], name)
    other = NumpyStream() if stream.name != "numpy" else PhiloxStream()
    elsewhere = train(tmp_path / "other", 2, other)
    assert any(not torch.equal(whole["state_dict"][name], value) for name, value in elsewhere["state_dict"].items())


def test_new_modules_draw_with_philox_and_rebuilt_ones_as_their_checkpoint_says(tmp_path: Path) -> None:
    section = sign_generator_section()
    module = build_module(section)
    assert isinstance(module.stream, PhiloxStream) and module.stream is module.conditioning.stream
    assert isinstance(codec_module().stream, PhiloxStream)
    save_generator(module, section, tmp_path / "new")
    assert isinstance(load_module(tmp_path / "new").stream, PhiloxStream)
    checkpoint = torch.load(tmp_path / "new" / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint[EVIDENCE][RECORD]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old = load_module(tmp_path / "old.ckpt")
    assert isinstance(old.stream, NumpyStream) and old.stream is old.conditioning.stream
    checkpoint[EVIDENCE][RECORD] = "mersenne"
    torch.save(checkpoint, tmp_path / "unknown.ckpt")
    with pytest.raises(UserError, match="mersenne"):
        load_module(tmp_path / "unknown.ckpt")


def test_images_of_an_old_generator_keep_their_noise() -> None:
    old, new = generator_module(), generator_module()
    old._use_stream(NumpyStream())
    images = [module.sample(["a", "b"], seed=3, steps=2, first_index=5) for module in (old, new)]
    assert not torch.equal(*images)
    batch = sign_batch(range(4))
    with torch.no_grad():
        assert not torch.equal(old.sample_losses(batch), new.sample_losses(batch))
