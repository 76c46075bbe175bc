"""From pictures to updated weights: ours on latents that were encoded once, the scripts of diffusers as published.

The peer decodes pictures, and runs the codec and the text encoder in each step; ours reads what data_tools/
encode_latents.py wrote, whose cost is reported beside, once for all epochs and trainings. Same pictures, captions,
codec, text encoder and denoiser. The pictures already have the training's size and the peer holds them in memory: it
neither reads tar files nor resizes.
"""

import copy
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generator_step
import measure
import torch
import yaml
from generator_step import CHANNELS, shared_noise
from PIL import Image
from published_loop import PublishedLoop
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from toy_input import captions, photo, write_tokenizer

from data_tools import encode_latents
from leam_mm.callbacks.compilation import probe
from leam_mm.checkpoint import EVIDENCE, build_module, load_module
from leam_mm.codecs.latent_codec import DCCodec, LatentCodec
from leam_mm.codecs.pretrained_codec import PretrainedCodec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.batch import PlannedBatches, batch_loader
from leam_mm.data.latents_module import LatentsModule
from leam_mm.data.loader_workers import FromPosition
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardWriter, read_samples
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.errors import run
from leam_mm.release.diffusers_folder import clip_text_model, load_tokenizer

CONTEXT, STEPS = generator_step.CONTEXT, 4


@dataclass(frozen=True)
class Networks:
    """Beside the denoiser of generator_step's size of that name."""

    image_size: int
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    text_layers: int


NETWORKS = {
    "quickstart": Networks(32, (16, 16, 32, 64), (0, 1, 1, 1), 2),
    "small": Networks(128, (32, 64, 128, 128), (1, 1, 2, 2), 6),
    "base": Networks(256, (128, 256, 512, 512), (2, 2, 2, 2), 12),
}


class Pictures(Dataset):
    """The script's data set: decoded, normalised pictures and padded tokens."""

    def __init__(self, samples: list[tuple[bytes, str]], tokenizer: Any) -> None:
        self.samples, self.tokenizer = samples, tokenizer
        scaled = v2.ToDtype(torch.float32, scale=True)
        self.transform = v2.Compose([v2.ToImage(), scaled, v2.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        picture, text = self.samples[number]
        words = self.tokenizer(text, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        pixels = self.transform(Image.open(io.BytesIO(picture)).convert("RGB"))
        return pixels, words.input_ids[0], words.attention_mask[0].bool()


def write_shards(folder: Path, count: int, size: int) -> Path:
    """Photo-like PNG of the training's size with captions."""
    with ShardWriter(folder, max(count // 4, 1)) as writer:
        for number, text in enumerate(captions(count, seed=3)):
            buffer = io.BytesIO()
            photo(number, size).save(buffer, "PNG")
            record = {"captions": [{"text": text, "language": "en"}]}
            writer.write(f"{number:06d}", {"png": buffer.getvalue(), "json": json.dumps(record).encode()})
    return folder


def write_clip(path: Path, tokenizer: Path, width: int, layers: int) -> Path:
    """A checkpoint of towers with random weights, for the text side."""
    vocabulary = Tokenizer(tokenizer, CONTEXT).vocabulary
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": width, "heads": width // 32, "layers": layers}
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32}
    arguments = {"encoder": {"embed_dim": 64, "vision": vision, "text": text}, "tokenizer": str(tokenizer)}
    arguments["loss"] = {"class_path": "leam_mm.losses.contrastive.InfoNCE"}
    section = {"class_path": "leam_mm.contrastive_module.ContrastiveModule", "init_args": arguments}
    evidence = {"config": yaml.safe_dump({"model": section}), "model_class": section["class_path"]}
    torch.save({"state_dict": build_module(section).state_dict(), EVIDENCE: evidence}, path)
    return path


def write_codec(folder: Path, networks: Networks) -> Path:
    """A codec with random weights in diffusers' layout."""
    codec = DCCodec(CHANNELS, list(networks.widths), list(networks.layers))
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    codec.save(folder)
    return folder


def encode(shards: Path, codec: Path, clip: Path, output: Path, size: int, device: str) -> float:
    """Run the program twice, the first time to warm up; returns pictures per second with the networks' loading."""
    for place in (output.with_name("warm"), output):
        words = ["--shards", str(shards), "--codec", str(codec), "--clip", str(clip), "--output", str(place)]
        words += ["--image-size", str(size), "--device", device, "--captions-per-sample", "1"]
        began = time.perf_counter()
        encode_latents.encode_latents(encode_latents.parse(words), Console(quiet=True))
        seconds = time.perf_counter() - began
    return sum(1 for _ in read_samples(shards)) / seconds


class FromPictures:
    """The published step: pictures and texts through the frozen networks, then the loop."""

    def __init__(self, loop: PublishedLoop, codec: LatentCodec, text: Any, device: str) -> None:
        self.loop, self.device = loop, device
        self.codec = copy.deepcopy(codec.autoencoder).to(device).requires_grad_(False).eval()
        self.factor = codec.export_config()["scaling_factor"]
        self.text = text.to(device).requires_grad_(False).eval()

    def encode(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, states and mask."""
        pixels, words, mask = (part.to(self.device) for part in batch)
        with self.loop.accelerator.autocast():
            latent = self.codec.encode(pixels, return_dict=False)[0] * self.factor
            return latent.float(), self.text(words).last_hidden_state.float(), mask

    def step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """One optimizer step."""
        self.loop.step(*self.encode(batch))


def compare(name: str, prefix: str, compiled: bool, folder: Path, settings: Any) -> Path:
    """Encode, check the loss of a batch, then time passes of a few steps."""
    size, networks, device = generator_step.SIZES[name], NETWORKS[name], settings.device
    torch.manual_seed(0)
    samples = size.batch * STEPS
    shards = write_shards(folder / "shards", samples, networks.image_size)
    tokenizer = write_tokenizer(folder / "tokenizer", CONTEXT, captions(500))
    clip = write_clip(folder / "clip.ckpt", tokenizer, size.context_dim, networks.text_layers)
    saved = write_codec(folder / "codec", networks)
    rate = encode(shards, saved, clip, folder / "latents", networks.image_size, device)

    codec = PretrainedCodec(str(saved))
    codec.load_statistics(folder / "latents")
    towers = load_module(clip, ContrastiveModule).ema_encoder()
    module, step = generator_step.our_steps(size, device)
    loop = PublishedLoop(copy.deepcopy(module.denoiser.model), device)
    peer = FromPictures(loop, codec, clip_text_model(towers, tokenizer), device)
    by_key = {
        key: (members["png"], json.loads(members["json"])["captions"][0]["text"])
        for key, members in read_samples(shards)
    }
    reader = load_tokenizer(tokenizer, CONTEXT)
    data = LatentsModule(folder / "latents", size.batch, loading=Loading(settings.workers))
    data.setup("fit")
    assert data.train_plan is not None
    batches = PlannedBatches(data.train_plan, data.decode, size.batch, 0, 1)

    def moved(batch: dict[str, Any]) -> dict[str, Any]:
        kept = {key: batch[key].to(device) for key in ("latent", "caption_state", "caption_length")}
        return kept | {"sample_index": batch["sample_index"]}

    first = batches[0]
    chosen = DataLoader(Pictures([by_key[key] for key in first["key"]], reader), batch_size=size.batch)
    batch = moved(first)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        mine = float(module.sample_losses(batch).mean())
        latent, state, mask = peer.encode(next(iter(chosen)))
        theirs = float(loop.loss(latent, state, mask, *shared_noise({**batch, "latent": latent})))
    # Stored in float16, ours are rounded.
    same = [
        measure.require_same("loss of a batch, relative", abs(mine - theirs) / theirs, 2e-3),
        measure.require_same(
            "latents, norm of the difference over theirs",
            float((batch["latent"] - latent).norm() / latent.norm()),
            1e-3 if device == "cpu" else 2e-2,
        ),
    ]
    module.process = RectifiedFlow()
    generator_step.get_ready(module, device, compiled)
    loader = DataLoader(
        Pictures(list(by_key.values()), reader), batch_size=size.batch, shuffle=True, num_workers=settings.workers
    )
    seen = [0]

    def ours() -> None:
        seen[0] += STEPS
        for given in batch_loader(batches, FromPosition(seen[0] - STEPS, seen[0]), settings.workers):
            step(moved(given))

    def published() -> None:
        for given in loader:
            peer.step(given)

    found = measure.time_pairs(ours, published, settings.repeats, warmup=2, device=device)
    share = encoding_share(peer, loader, device)
    notes = (
        f"denoiser {size.hidden_size} x {size.depth}, pictures of {networks.image_size} px, batch {size.batch}, "
        f"{settings.workers} workers; the peer spends {share:.0%} of its step on decoding and encoding; encode_latents "
        f"did {rate:.1f} pictures a second, once; {'blocks compiled' if compiled else 'not compiled'}"
    )
    further = {"encoded_once_per_second": rate, "peer_share_of_encoding": share}
    labels = ("LatentsModule and LatentDiffusionModule", "diffusers' scripts")
    return measure.write_comparison(prefix, labels, found, (samples, "sample"), same, settings, notes, further)


def encoding_share(peer: FromPictures, loader: DataLoader, device: str) -> float:
    """Share of the peer's pass that is decoding, codec and text encoder."""

    def seconds(work: Callable[[Any], object]) -> float:
        began = time.perf_counter()
        for batch in loader:
            with torch.no_grad():
                work(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    before = seconds(peer.encode)
    began = time.perf_counter()
    for batch in loader:
        peer.step(batch)
    return before / max(time.perf_counter() - began, before)


@measure.benchmark(
    repeats=7,
    devices=("cpu", "cuda"),
    size=(str, "default: quickstart and small; base on cuda", {"choices": list(NETWORKS), "action": "append"}),
    workers=(0, "loader processes of each side"),
    eager=(False, "compile nothing"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure with the networks of the quickstart, or larger ones."""
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # accelerate steps it after its own optimizer
    reason = "" if settings.eager else probe(torch.device(settings.device))
    if reason:
        print(f"torch.compile does not work here, so nothing is compiled: {reason}")
    written = []
    for name in settings.size or (["quickstart", "small"] if settings.device == "cpu" else ["base"]):
        with tempfile.TemporaryDirectory() as scratch:
            prefix = "generator_step_from_shards" + ("" if name == "quickstart" else f"_{name}")
            written.append(compare(name, prefix, not (reason or settings.eager), Path(scratch), settings))
    return written


if __name__ == "__main__":
    run(main)
