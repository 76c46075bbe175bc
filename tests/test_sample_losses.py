"""Losses of single samples: those of the process, whatever the batch; one caption may serve all samples."""

import torch
from toys.generators import generator_module, randomise_generator

from leam_mm.data.random_stream import PhiloxStream
from leam_mm.evaluators.sample_losses import TIMES, decode_latents, encode_images, sample_losses


def test_losses_are_the_mean_over_times_and_noises_and_do_not_depend_on_the_batch() -> None:
    module = randomise_generator(generator_module()).eval()
    latents = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    numbers = torch.arange(10, 15)
    state, mask = module.caption_encoder.encode(["a", "bb", "ccc dd", "e f g", "hhhhh"])
    found = sample_losses(module, latents, (state, mask), numbers, 2, 7, batch_size=2)
    expected = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for draw in range(2):
            noise = PhiloxStream().normal(7, numbers, f"held out {draw}", (4, 4, 4))
            for t in TIMES:
                time = torch.full((5,), t)
                error = module.ema_denoiser()(module.process.corrupt(latents, noise, time), time, state, mask)
                error = error - module.process.target(latents, noise, time)
                expected += error.square().flatten(1).mean(1).double() / (2 * len(TIMES))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_one_caption_serves_all_samples_and_equal_numbers_get_equal_noise() -> None:
    module = randomise_generator(generator_module()).eval()
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    numbers = torch.zeros(3, dtype=torch.int64)
    losses = sample_losses(module, latent.expand(3, -1, -1, -1), module.caption_encoder.encode(["a"]), numbers, 1, 0)
    torch.testing.assert_close(losses, losses[:1].expand(3))
    assert losses[0] != sample_losses(module, latent, module.caption_encoder.encode(["a"]), numbers[:1] + 1, 1, 0)[0]


def test_images_survive_a_codec_that_loses_nothing() -> None:
    module = generator_module()
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert (decode_latents(module, encode_images(module, images, 2), 3) == images).all()
