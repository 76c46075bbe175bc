"""Streams of random numbers: which one a run has, and that a checkpoint keeps it."""

import pytest
import torch

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
