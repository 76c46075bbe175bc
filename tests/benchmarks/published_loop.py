"""The training step of diffusers' scripts around a denoiser: what the benchmarks of the generator measure beside.

The flow's maths of train_dreambooth_sd3.py in the loop of train_text_to_image.py, written after diffusers 0.42: a table
of 1,000 times whose entry is searched for each sample, the loss gathered over all processes and read by the host twice
a step, clipping by accelerate, AdamW and EMAModel with their defaults, nothing compiled.
"""

from typing import Any

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

RATE, BETAS, EPSILON, DECAY = 1e-4, (0.9, 0.999), 1e-8, 1e-2  # the scripts' defaults
CLIP, AVERAGE = 1.0, 0.9999
TABLE = 1000


class PublishedLoop:
    """Model, optimizer, average and schedule as the scripts make them.

    Args:
        model: PRXTransformer2DModel.
        device: cpu, or cuda with bfloat16 by accelerate's autocast.
    """

    def __init__(self, model: Any, device: str) -> None:
        """See the class for the arguments."""
        precision = "bf16" if device == "cuda" else "no"
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TABLE, shift=1.0)
        self.average = EMAModel(model.parameters(), decay=AVERAGE, model_cls=type(model), model_config=model.config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
        rate = get_scheduler("constant", optimizer=optimizer)
        self.model, self.optimizer, self.rate = self.accelerator.prepare(model.to(device).train(), optimizer, rate)
        self.average.to(self.accelerator.device)

    def sigmas(self, times: Tensor, like: Tensor) -> Tensor:
        """The table's noise levels at these entries, found as the script finds them, shaped (B, 1, 1, 1)."""
        levels = self.scheduler.sigmas.to(like.device, like.dtype)
        table = self.scheduler.timesteps.to(like.device)
        places = [(table == time).nonzero().item() for time in times]
        return levels[places].flatten()[:, None, None, None]

    def loss(
        self, latent: Tensor, state: Tensor, mask: Tensor, noise: Tensor | None = None, density: Tensor | None = None
    ) -> Tensor:
        """Mean loss of a batch; noise and times may be given, to compare."""
        if noise is None:
            noise = torch.randn_like(latent)
        if density is None:
            density = compute_density_for_timestep_sampling("logit_normal", len(latent), logit_mean=0.0, logit_std=1.0)
        entries = (density * TABLE).long().cpu()
        times = self.scheduler.timesteps[entries].to(latent.device)
        sigma = self.sigmas(times, latent)
        noisy = (1.0 - sigma) * latent + sigma * noise
        prediction = self.model(
            hidden_states=noisy,
            timestep=times / TABLE,
            encoder_hidden_states=state,
            attention_mask=mask,
            return_dict=False,
        )[0]
        weight = compute_loss_weighting_for_sd3("none", sigma).float()
        error = weight * (prediction.float() - (noise - latent).float()) ** 2
        return error.reshape(len(latent), -1).mean(1).mean()

    def step(self, *batch: Any) -> float:
        """One optimizer step; returns the loss that the script shows."""
        loss = self.loss(*batch)
        self.accelerator.gather(loss.repeat(len(batch[0]))).mean().item()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.average.step(self.model.parameters())
        return loss.detach().item()
