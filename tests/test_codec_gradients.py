"""Gradients of codec training: those of the plain formula, and on two ranks those of one process."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from toys.codecs import RandomImages, codec_module, fit_codec, sgd, weights_of

from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.codec_losses import Adversarial, CodecLosses
from leam_mm.codecs.latent_codec import KLCodec
from leam_mm.codecs.perceptual_loss import EfficientNetLoss
from leam_mm.data.image_range import signed
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.losses.reconstruction import PatchDiscriminator
from leam_mm.optim.schedule import Schedule


class Noted(LatentCodecModule):
    """Writes down the gradient with which each network steps."""

    def note(self, folder: Path) -> "Noted":
        self.folder, self.noted = folder, []  # type: ignore[var-annotated]
        return self

    def _step(self, optimizer: Any, loss: Tensor, network: nn.Module) -> None:
        super()._step(optimizer, loss, network)
        self.noted.append(flat(network))

    def on_train_end(self) -> None:
        state = dict(self.state_dict())
        torch.save((self.noted, state), self.folder / f"{self.trainer.world_size}_{self.global_rank}.pt")


def flat(network: nn.Module) -> Tensor:
    return torch.cat([weight.grad.detach().flatten() for weight in network.parameters() if weight.grad is not None])


def noted(folder: Path) -> Noted:
    torch.manual_seed(0)
    return Noted(
        KLCodec(latent_channels=4, widths=[8, 8, 8], layers=1, norm_groups=4),
        sgd,
        CodecLosses(perceptual=EfficientNetLoss(stages=(0,)), kl_weight=0.1),
        Adversarial(PatchDiscriminator(width=4), weight=0.5, adaptive=True, clip=1e9),
        Schedule(warmup_steps=0),
        ema=0.9,
    ).note(folder)


def test_two_ranks_have_the_gradients_of_one_process_with_every_loss(tmp_path: Path) -> None:
    one, two = noted(tmp_path), noted(tmp_path)
    fit_codec(one, tmp_path, steps=3, precision="64-true", limit_val_batches=0)
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo", find_unused_parameters=True)
    rank_settings: dict[str, Any] = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
    fit_codec(two, tmp_path, steps=3, batch_size=2, precision="64-true", limit_val_batches=0, **rank_settings)
    names = ("1_0.pt", "2_0.pt", "2_1.pt")
    (whole, state), *ranks = (torch.load(tmp_path / name, weights_only=True) for name in names)
    assert len(whole) == 6  # codec and critic in turns
    for gradients, ending in ranks:
        for found, expected in zip(gradients, whole, strict=True):
            assert (found - expected).norm() <= 1e-10 * expected.norm()
        for name, value in ending.items():  # the average as well
            torch.testing.assert_close(value, state[name], rtol=1e-10, atol=1e-12, msg=name)


def test_gradients_are_those_of_the_plain_formula(tmp_path: Path) -> None:
    trained = noted(tmp_path)
    codec, critic = copy.deepcopy(trained.codec).double(), copy.deepcopy(trained.discriminator).double()  # type: ignore[union-attr]
    fit_codec(trained, tmp_path, steps=1, precision="64-true", limit_val_batches=0)
    image = signed(RandomImages().image[:4], torch.float64)
    posterior = codec.posterior(image)
    noise = PhiloxStream().normal(0, torch.arange(4), "posterior", posterior.mean.shape[1:])
    reconstruction = codec.decode_raw(posterior.mean + posterior.std * noise.double())
    divergence = (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean() / 2
    perceptual = EfficientNetLoss(stages=(0,))(reconstruction, image).mean()
    others = (reconstruction - image).abs().mean() + perceptual + 0.1 * divergence
    opinion, last = -critic(reconstruction).mean(), codec.autoencoder.decoder.conv_out.weight
    lengths = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (others, opinion)]
    loss = others + 0.5 * lengths[0] / (lengths[1] + 1e-6) * opinion
    verdict = ((1 - critic(image)).relu().mean() + (1 + critic(reconstruction.detach())).relu().mean()) / 2
    for network, value, found in ((codec, loss, trained.noted[0]), (critic, verdict, trained.noted[1])):
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(value, network.parameters(), retain_graph=True)])
        assert (found - wanted).norm() <= 1e-10 * wanted.norm()
    # What would be missing under no_grad is a good part of the whole.
    missing = torch.autograd.grad(perceptual, codec.parameters(), allow_unused=True)
    assert torch.cat([g.flatten() for g in missing if g is not None]).norm() > 0.1 * trained.noted[0].norm()


def test_adaptive_weight_is_that_of_the_batch_and_bfloat16_trains(tmp_path: Path) -> None:
    losses = {"perceptual": EfficientNetLoss(stages=(0,))}
    model = codec_module(critic={"adaptive": True, "weight": 2.0}, losses=losses, ema=0.9)
    codec, critic = copy.deepcopy(model.codec), copy.deepcopy(model.discriminator)
    before = weights_of(model.codec)
    trainer = fit_codec(model, tmp_path, steps=1, limit_val_batches=0)
    image = signed(RandomImages().image[:4])
    reconstruction = codec.decode_raw(codec.encode_raw(image))
    others = (reconstruction - image).abs().mean() + EfficientNetLoss(stages=(0,))(reconstruction, image).mean()
    last, opinion = codec.autoencoder.decoder.conv_out.conv.weight, -critic(reconstruction).mean()
    first, second = (torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (others, opinion))
    factor = trainer.callback_metrics["train/adversarial_factor"]
    assert factor.item() == pytest.approx((first / second).item(), rel=1e-3)
    expected = others + 2 * factor * opinion
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    fit_codec(model, tmp_path, steps=2, precision="bf16-mixed")
    for name, value in model.codec.named_parameters():
        assert value.dtype == torch.float32 and torch.isfinite(value).all()
        assert not torch.equal(value, before[name]) or "to_k.bias" in name, name


@pytest.mark.slow
def test_two_ranks_without_a_critic_train_as_one_process(tmp_path: Path) -> None:
    one, two = codec_module(), codec_module()
    fit_codec(one, tmp_path, steps=2, batch_size=4)
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo", find_unused_parameters=False)
    fit_codec(two, tmp_path, steps=2, batch_size=2, strategy=strategy, devices=2, use_distributed_sampler=False)
    for (name, value), other in zip(two.named_parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6, msg=name)
