"""One run of the benchmark `techniques`, in a process of its own: python technique_run.py SETTINGS.json

Trains a generator on latents in memory, on one core, and scores images of the same prompts a few times during training.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leam_mm.callbacks.compilation import probe, trained_blocks
from leam_mm.captions.caption_encoder import caption_tokens
from leam_mm.checkpoint import build_module, load_module
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.latent_members import read_caption_state, read_feature, read_latent
from leam_mm.data.shard_index import read_samples
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_halves import frechet_of_halves
from leam_mm.evaluators.embedding import read_image_samples
from leam_mm.evaluators.generated_images import generate
from leam_mm.evaluators.image_features import EfficientNetLite0
from leam_mm.intervals.distance_interval import interval_of_halves
from leam_mm.optim.optimizer import build_optimizer
from leam_mm.optim.schedule import Schedule
from leam_mm.prompts.scene_reader import SceneReader, score

STEPS, GUIDANCE = 20, 3.0  # of the sampler
CLIPPED = 1.0
REAL = 1024  # pictures that generated ones are compared with, at most


def collect(latents: Path, runs: Path, file: Path) -> None:
    """Keep all latent samples, and features of real pictures, as tensors that processes can share from the disk."""
    rows: list[dict[str, Any]] = []
    tokenizer = load_module(runs / "clip", ContrastiveModule).tokenizer
    for _, members in read_samples(latents):
        captions = json.loads(members["json"])["caption_states"]
        states = [read_caption_state(members, entry, place).half() for place, entry in enumerate(captions)]
        texts = [entry["text"] for entry in captions]
        rows.append({"latent": read_latent(members, 0, 0), "states": states, "texts": texts, **read_feature(members)})
    captions_each = min(len(row["states"]) for row in rows)
    prompt, length = caption_tokens([text for row in rows for text in row["texts"][:captions_each]], tokenizer)
    prompts = {"prompt": prompt.unflatten(0, (len(rows), -1)), "prompt_length": length.unflatten(0, (len(rows), -1))}
    longest = max(len(state) for row in rows for state in row["states"])
    state = torch.zeros(len(rows), captions_each, longest, rows[0]["states"][0].shape[1], dtype=torch.half)
    length = torch.zeros(len(rows), captions_each, dtype=torch.int64)
    for number, row in enumerate(rows):
        for place, one in enumerate(row["states"][:captions_each]):
            state[number, place, : len(one)], length[number, place] = one, len(one)
    whole = {name: torch.stack([row[name] for row in rows]) for name in ("latent", "image_feature")}
    size = json.loads((latents / "encoding.json").read_text())["image_sizes"][0]
    pixels = torch.stack([picture.pixels(size) for picture in read_image_samples(runs / "shards/test", REAL)])
    features = EfficientNetLite0()
    real = torch.cat([features.extract(part) for part in pixels.split(64)])
    torch.save({**whole, **prompts, "caption_state": state, "caption_length": length, "real": real}, file)


class Batches:
    """The same batches for every arm of a seed: each epoch a permutation, one of a picture's captions each time."""

    def __init__(self, file: Path, seed: int, batch_size: int) -> None:
        """Open the tensors."""
        self.data: dict[str, Tensor] = torch.load(file, mmap=True, weights_only=True)
        self.batch_size, self.seed = batch_size, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)
        self.seen, self.digest = 0, hashlib.sha256()

    def next(self) -> dict[str, Any]:
        """The next batch."""
        while len(self.order) < self.batch_size:
            epoch = torch.randperm(len(self.data["latent"]), generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        caption = torch.randint(self.data["caption_length"].shape[1], (self.batch_size,), generator=self.generator)
        self.digest.update(torch.stack([rows, caption]).numpy().tobytes())
        index = torch.arange(self.seen, self.seen + self.batch_size)
        self.seen += self.batch_size
        length, spoken = (self.data[name][rows, caption] for name in ("caption_length", "prompt_length"))
        return {
            "latent": self.data["latent"][rows],
            "caption_state": self.data["caption_state"][rows, caption, : int(length.max())].float(),
            "caption_length": length,
            "prompt": self.data["prompt"][rows, caption, : int(spoken.max())],
            "prompt_length": spoken,
            "image_feature": self.data["image_feature"][rows],
            "sample_index": index,
        }


class Judge:
    """Draws the same prompts with the same noise and compares: Fréchet distance, and what a reader sees in scenes.

    Args:
        runs: Folder with shards, and with scenes where the pictures are scenes.
        count: Pictures to draw.
        real: (B, D) features of real pictures.
    """

    def __init__(self, runs: Path, count: int, real: Tensor) -> None:
        """See the class for the arguments."""
        self.features, self.real = EfficientNetLite0(), real
        prompted = [picture for picture in read_image_samples(runs / "shards/test", REAL) if picture.captions("en")]
        self.chosen = [prompted[place * len(prompted) // count] for place in range(min(count, len(prompted)))]
        self.prompts = [picture.captions("en")[0] for picture in self.chosen]
        self.reader = SceneReader(runs / "scenes") if (runs / "scenes/scenes.json").is_file() else None

    def look(self, module: Any) -> dict[str, Any]:
        """Numbers of the averaged weights as they are now."""
        parts = range(0, len(self.prompts), 64)
        drawn = [generate(module, self.prompts[at : at + 64], SamplerSettings(STEPS, GUIDANCE), 0, at) for at in parts]
        feature = torch.cat([self.features.extract(part) for part in drawn])
        distance = frechet_distance_of_features(self.real, feature)
        low, high = interval_of_halves(frechet_of_halves(self.real, feature), distance)
        found: dict[str, Any] = {"frechet": distance, "frechet_interval": [low, high]}
        if self.reader is not None:
            images = torch.cat(drawn).permute(0, 2, 3, 1).numpy()
            scenes = zip(images, (picture.record["metadata"] for picture in self.chosen), strict=True)
            verdicts = [score(self.reader.read(image), truth) for image, truth in scenes if truth["kind"] == "single"]
            for name in ("colour", "colour_shape"):
                right = [bool(verdict[name]) for verdict in verdicts]
                found |= {name: float(np.mean(right)), f"{name}_right": right}
        return found


def build(settings: dict[str, Any]) -> Any:
    """The generator of a recipe; all arms of a seed start from the same weights."""
    torch.manual_seed(settings["seed"])
    return build_module(settings["model"])


def digest(weights: nn.Module) -> str:
    """Of a network's weights."""
    found = hashlib.sha256()
    for value in weights.parameters():
        found.update(value.detach().numpy().tobytes())
    return found.hexdigest()


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and judge at equal distances; only the training counts as time."""
    module, batch_size, steps = build(settings), settings["batch_size"], settings["steps"]
    batches = Batches(Path(settings["data"]), settings["seed"], batch_size)
    judge = Judge(Path(settings["runs"]), settings["pictures"], batches.data["real"])
    beginning, tower = digest(module.denoiser.model), module.denoiser.caption_tower
    module.conditioning.start_tower()
    trained = nn.ModuleList([module.denoiser, *module.techniques])
    optimizer = build_optimizer(module.optimizer, trained, tower.rate_shares() if tower is not None else None)
    warmup = min(module.schedule.warmup_steps, steps // 4)
    rate = Schedule(warmup).build(optimizer, steps)
    began = time.process_time()
    reason = probe(torch.device("cpu"))
    if not reason:
        for block in trained_blocks(module):
            block.compile(dynamic=True)
    module.train()
    module.conditioning.empty()
    warming = Batches(Path(settings["data"]), 0, batch_size)
    for cut in (0, 1, 2, 3, 0):  # captions of several lengths: what is compiled, is compiled here; nothing is learnt
        batch = warming.next()
        for tokens, length in (("caption_state", "caption_length"), ("prompt", "prompt_length")):
            batch[tokens] = batch[tokens][:, : batch[tokens].shape[1] - cut]
            batch[length] = batch[length].clamp(max=batch[tokens].shape[1])
        module.sample_losses(batch).mean().backward()
        trained.zero_grad()
    compiling = time.process_time() - began
    looks = [steps * (place + 1) // settings["looks"] for place in range(settings["looks"])]
    curve, cpu, wall, smooth = [], 0.0, 0.0, 0.0
    for step in range(1, steps + 1):
        since = time.process_time(), time.perf_counter()
        loss = module.sample_losses(batches.next()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), CLIPPED)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        module.ema.update(module.denoiser)
        smooth = float(loss.detach()) if step == 1 else 0.98 * smooth + 0.02 * float(loss.detach())
        cpu, wall = cpu + time.process_time() - since[0], wall + time.perf_counter() - since[1]
        if step in looks:
            point = {"samples": step * batch_size, "cpu_seconds": cpu, "seconds": wall, "training_loss": smooth}
            curve.append(point | judge.look(module))
            module.train()
    return {
        "curve": curve,
        "compiling_cpu_seconds": compiling,
        "not_compiled_because": reason,
        "order": batches.digest.hexdigest(),
        "beginning": beginning,
        "weights": sum(value.numel() for value in module.denoiser.parameters()),
        "protocol": judge.features.protocol,
    }


def main(path: Path) -> None:
    """Write what was found beside the settings, whole or not at all."""
    torch.set_num_threads(1)
    settings = json.loads(path.read_text())
    begun = time.perf_counter()
    if "collect" in settings:
        file = Path(settings["data"])
        collect(Path(settings["collect"]), Path(settings["runs"]), file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)
        return
    found = train(settings) | {"whole_seconds": time.perf_counter() - begun}
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(found))
    temporary.replace(path.with_suffix(".found.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
