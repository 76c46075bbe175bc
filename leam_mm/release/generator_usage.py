"""What a model card shows of a generator's use: drawing, image-to-image, inpainting and low-rank weights, as code.

The blocks need diffusers alone and go on from one another; tests run them where this package cannot be imported.
"""

DRAWING = """
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("generator")
settings = {"num_inference_steps": 20, "guidance_scale": 3.0, "use_resolution_binning": False}
pipeline("ein rotes Quadrat", **settings).images[0].save("picture.png")
```

With guidance, the pipeline of diffusers 0.42 takes one prompt at a time. It cleans prompts before it reads them (lower
case, no brackets, no addresses); the generator was trained on captions cleaned in the same way.
"""

# The times are given whole, so the editor's scheduler must not shift them again; its weights are those of `pipeline`.
EDITING = """
From a picture to another one (image-to-image): drawing starts at the time `strength`, from the picture noised that far.
1 forgets the picture, 0 gives it back as the autoencoder sees it.

```python
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline
from PIL import Image

size, vae = pipeline.config.default_sample_size, pipeline.vae
parts = {**pipeline.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}
editor = PRXPipeline(**parts, default_sample_size=size)

def to_latent(picture):
    code = vae.encode(editor.image_processor.preprocess(picture, size, size), return_dict=False)[0]
    code = code if torch.is_tensor(code) else code.mode()
    return (code - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

@torch.no_grad()
def redraw(prompt, picture, strength, noise, steps=20, **more):
    grid = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    grid.set_timesteps(steps)
    times = [strength, *(t for t in grid.sigmas.tolist()[:-1] if t < strength)]
    start = (1 - strength) * to_latent(picture) + strength * noise
    more = {**settings, "num_inference_steps": None, "output_type": "pt", **more}
    return editor(prompt, timesteps=[1000 * t for t in times], latents=start, **more).images

def save(images, name):
    editor.image_processor.numpy_to_pil(editor.image_processor.pt_to_numpy(images))[0].save(name)

picture = Image.open("picture.png").convert("RGB")  # any picture; it is brought to the generator's size
noise = torch.randn(to_latent(picture).shape, generator=torch.Generator().manual_seed(0))
save(redraw("ein blauer Kreis", picture, 0.6, noise), "redrawn.png")
```

Only a part of a picture (inpainting): after each step, what is to be kept is put back, noised as the time asks. `mask`
is 1 where is drawn anew. The callback changes the latents in place: the pipeline does not look at what it returns.

```python
@torch.no_grad()
def inpaint(prompt, picture, mask, noise, strength=1.0, **more):
    clean = to_latent(picture)
    anew = torch.nn.functional.max_pool2d(mask, size // clean.shape[-1]) > 0

    def keep(pipe, step, time, values):
        t = pipe.scheduler.sigmas[step + 1]
        values["latents"].copy_(torch.where(anew, values["latents"], (1 - t) * clean + t * noise))

    drawn = redraw(prompt, picture, strength, noise, callback_on_step_end=keep, **more)
    return torch.where(mask > 0, drawn, redraw(prompt, picture, 0.0, noise))

mask = torch.zeros(1, 1, size, size)
mask[..., size // 2 :] = 1  # the right half is drawn anew
save(inpaint("ein blauer Kreis", picture, mask, noise), "inpainted.png")
```
"""

LOW_RANK = """
`low_rank/` holds what the fine-tuning added, alone: a few percent of the weights, for those who have the base already.
The library `peft` puts it on the base's transformer; `generator/` is the sum of both.

```text
import peft
pipeline = DiffusionPipeline.from_pretrained("BASE")  # the generator that this one was trained from
tuned = peft.PeftModel.from_pretrained(pipeline.transformer, "low_rank")
pipeline.transformer = tuned.merge_and_unload()
```
"""
