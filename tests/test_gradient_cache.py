"""A batch embedded in parts has the gradients of the parts, dropout included, and the memory of one."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leam_mm.encoders.gradient_cache import embed_in_parts, split_batch
from leam_mm.losses.contrastive import InfoNCE, SigmoidLoss

B, K = 7, 2


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(B, 6, generator=generator, dtype=torch.float64),
        "text": torch.randn(B * K, 5, generator=generator, dtype=torch.float64),
        "key": [str(number) for number in range(B)],
        "whole": torch.arange(3),
    }


class Towers(nn.Module):
    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        middle = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.image = nn.Sequential(nn.Linear(6, 8), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).double()
        self.text = nn.Sequential(nn.Linear(5, 4), nn.Dropout(dropout)).double()
        self.scale = nn.Parameter(torch.tensor(1.5).double())
        self.bias = nn.Parameter(torch.tensor(-0.5).double())

    def forward(self, batch: dict) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image(batch["image"]), dim=-1), F.normalize(self.text(batch["text"]), dim=-1)

    def loss(self, features: tuple[Tensor, Tensor]) -> Tensor:
        image, text = features
        captions = text.unflatten(0, (B, K)).unbind(1)
        losses = [
            loss(image, each, self.scale.exp(), self.bias) for each in captions for loss in (InfoNCE(), SigmoidLoss())
        ]
        return torch.stack(losses).sum()


def gradients(towers: Towers) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in towers.named_parameters()}  # type: ignore[misc]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-12 * value.abs().max(), name


def test_parts_hold_what_belongs_to_their_images() -> None:
    made = list(split_batch(batch(), 3))
    assert [len(part["image"]) for part in made] == [3, 3, 1]
    assert [len(part["text"]) for part in made] == [6, 6, 2]
    assert [part["key"] for part in made] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert all(torch.equal(part["whole"], torch.arange(3)) for part in made)
    assert torch.equal(torch.cat([part["text"] for part in made]), batch()["text"])


@pytest.mark.parametrize("images", [1, 3, 7, 50])
def test_gradients_are_those_of_the_whole_batch(images: int) -> None:
    whole, parts = Towers(), Towers()
    whole.loss(whole(batch())).backward()
    parts.loss(embed_in_parts(parts, batch(), images, parts)).backward()
    assert gradients(whole)["scale"].abs() > 0 and gradients(whole)["bias"].abs() > 0
    assert_same(gradients(parts), gradients(whole))


def test_dropout_is_the_same_in_both_passes() -> None:
    apart, cached = Towers(0.5), Towers(0.5)
    torch.manual_seed(11)
    parts = [apart(part) for part in split_batch(batch(), 3)]
    apart.loss((torch.cat([image for image, _ in parts]), torch.cat([text for _, text in parts]))).backward()
    torch.manual_seed(11)
    loss = cached.loss(embed_in_parts(cached, batch(), 3, cached))
    after = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), after)  # the second pass leaves no trace in what follows
    assert_same(gradients(cached), gradients(apart))


def test_running_statistics_move_once() -> None:
    apart, cached = Towers(norm=True), Towers(norm=True)
    parts = [apart(part) for part in split_batch(batch(), 4)]
    apart.loss((torch.cat([image for image, _ in parts]), torch.cat([text for _, text in parts]))).backward()
    cached.loss(embed_in_parts(cached, batch(), 4, cached)).backward()
    assert_same(gradients(cached), gradients(apart))
    for (name, one), two in zip(apart.named_buffers(), cached.buffers(), strict=True):
        torch.testing.assert_close(two, one, msg=name)


def test_one_part_is_in_memory_at_a_time() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    seen = []

    class Watched(torch.autograd.Function):
        """Keeps its output for the backward pass, as an activation, and counts how many such are there."""

        @staticmethod
        def forward(context: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: object, upstream: Tensor) -> Tensor:
            seen.append(sum(len(kept) for kept in alive))
            return upstream

    towers = Towers()

    def embed(part: dict) -> tuple[Tensor, Tensor]:
        hidden = Watched.apply(towers.image[0](part["image"]))
        kept = hidden.sin()  # sin keeps its input for the backward pass
        alive.add(hidden)
        return F.normalize(towers.image[4](kept), dim=-1), F.normalize(towers.text(part["text"]), dim=-1)

    features = embed_in_parts(embed, batch(), 2, towers)
    assert sum(len(kept) for kept in alive) == 0  # nothing but the features is left of the first pass
    towers.loss(features).backward()
    assert len(seen) == 4 and max(seen) <= 2
