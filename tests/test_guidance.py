import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from leam_mm.diffusion.guidance import Guidance, guide, rescale_deviation
from leam_mm.diffusion.samplers import sample_euler
from leam_mm.errors import UserError


class Recorder:
    """A denoiser whose prediction is the masked mean of its caption, and which counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: torch.Tensor, time: torch.Tensor, state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x_t))
        return x_t * time[:, None] + (state * mask[..., None]).sum(1)


@pytest.fixture
def parts() -> tuple:
    generator = torch.Generator().manual_seed(0)
    x_t, time = torch.randn(3, 5, generator=generator), torch.rand(3, generator=generator)
    caption = (torch.randn(3, 4, 5, generator=generator), torch.rand(3, 4, generator=generator) > 0.3)
    empty = (torch.randn(1, 4, 5, generator=generator), torch.tensor([[True, True, False, False]]))
    return x_t, time, caption, empty


@pytest.mark.parametrize("guidance", [1.5, 4.0])
def test_guidance_is_the_line_through_both_predictions(parts: tuple, guidance: float) -> None:
    x_t, time, caption, empty = parts
    network = Recorder()
    guided = guide(network, caption, empty, guidance)(x_t, time)
    assert network.batches == [6]
    with_caption = network(x_t, time, *caption)
    without = network(x_t, time, *(part.expand(3, *part.shape[1:]) for part in empty))
    torch.testing.assert_close(guided, without + guidance * (with_caption - without))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_guidance_of_one_is_off_and_costs_one_batch(parts: tuple, guidance: float) -> None:
    x_t, time, caption, empty = parts
    network = Recorder()
    plain = guide(network, caption, empty, guidance)(x_t, time)
    assert network.batches == [3]
    torch.testing.assert_close(plain, network(x_t, time, *caption))


def test_the_number_is_the_scale(parts: tuple) -> None:
    x_t, time, caption, empty = parts
    network = Recorder()
    plain, object_ = (guide(network, caption, empty, guidance)(x_t, time) for guidance in (2.5, Guidance(2.5)))
    assert torch.equal(plain, object_)


def test_outside_its_interval_the_network_is_called_once_on_the_captions_alone(parts: tuple) -> None:
    x_t, _, caption, empty = parts
    network = Recorder()
    guided, always = (guide(network, caption, empty, Guidance(3.0, *ends)) for ends in ((0.25, 0.75), (0.0, 1.0)))
    plain = guide(network, caption, empty, 1.0)
    for t, inside in ((1.0, False), (0.75, False), (0.74, True), (0.3, True), (0.25, False), (0.0, False)):
        time = torch.full((3,), t)
        expected = (always if inside else plain)(x_t, time)
        network.batches.clear()
        assert torch.equal(guided(x_t, time), expected)
        assert network.batches == ([6] if inside else [3])


def test_a_sampler_calls_the_network_as_often_as_the_interval_says(parts: tuple) -> None:
    x_t, _, caption, empty = parts
    network = Recorder()
    times = torch.linspace(1, 0, 11)  # called at 1.0, 0.9, ..., 0.1
    sample_euler(guide(network, caption, empty, Guidance(3.0, 0.25, 0.75)), x_t, times)
    assert network.batches == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]


def test_a_weaker_network_is_pushed_away_from(parts: tuple) -> None:
    x_t, time, caption, empty = parts
    network, other = Recorder(), Recorder()

    def weaker(*given: torch.Tensor) -> torch.Tensor:
        return other(*given) * 0.5

    guided = guide(network, caption, empty, Guidance(2.0), weaker)(x_t, time)
    assert network.batches == [3] and other.batches == [3]
    strong = network(x_t, time, *caption)
    torch.testing.assert_close(guided, 0.5 * strong + 2.0 * (strong - 0.5 * strong))
    other.batches.clear()
    guide(network, caption, empty, Guidance(2.0, high=0.01), weaker)(x_t, torch.ones(3))
    assert other.batches == []


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(parts: tuple, share: float) -> None:
    x_t, time, caption, empty = parts
    network = Recorder()
    guided = guide(network, caption, empty, 4.0)(x_t, time)
    theirs = rescale_noise_cfg(guided, network(x_t, time, *caption), share)
    torch.testing.assert_close(guide(network, caption, empty, Guidance(4.0, rescale=share))(x_t, time), theirs)
    whole = rescale_deviation(guided, x_t, 1.0)
    torch.testing.assert_close(whole.std(1), x_t.std(1))


@pytest.mark.parametrize("wrong", [{"low": 0.5, "high": 0.5}, {"low": -0.1}, {"high": 1.5}, {"rescale": 1.1}])
def test_guidance_that_means_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="Guidance"):
        Guidance(3.0, **wrong)
