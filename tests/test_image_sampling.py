"""The sampler object gives what the module's ``sample`` gives, and a sample depends on its number alone."""

import torch
from toys.generators import generator_module, randomise_generator

from leam_mm.denoisers.image_sampling import ImageSampler
from leam_mm.diffusion.sampler_settings import SamplerSettings

PROMPTS = ["one", "two words", "and three words"]


def test_the_sampler_is_what_the_module_samples_with() -> None:
    module = randomise_generator(generator_module()).eval()
    sampler = ImageSampler(module.ema_denoiser(), module.process, module.codec, (4, 4), 5, SamplerSettings(3, 2.0))
    captions, empty = module.conditioning.encoder().encode(PROMPTS), module.conditioning.empty()
    with torch.no_grad():
        image = sampler(captions, empty, torch.arange(3))
        alone = sampler((captions[0][1:2], captions[1][1:2]), empty, torch.tensor([1]))
    assert image.shape == (3, 3, 4, 4) and image.min() >= 0 and image.max() <= 1
    assert torch.equal(image, module.sample(PROMPTS, seed=5, steps=3, guidance=2.0))
    assert torch.allclose(alone[0], image[1], atol=1e-6)
