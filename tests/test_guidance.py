import pytest
import torch

from leam_mm.diffusion.guidance import guide


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
