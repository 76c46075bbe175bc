"""Base class of evaluators, their context, and the metrics they return.

A number comes with its interval, its unit and its number of samples; a number that was not measured is None.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from leam_mm.errors import UserError


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Args:
        name: Path-like name, for example `scenes/top1/de`.
        value: The number in `unit`, or None if it was not measured; `note` then says why.
        low: Lower end of the 95 % interval, in the same unit, or None.
        high: Upper end, or None.
        unit: `fraction` (0 to 1), `distance`, `count`, `seconds` and so on.
        samples: Number of samples.
        slices: Parts of the number by name, as values that JSON can hold.
        note: One sentence for the reader: chance level, protocol, reason for None.
        outcomes: Outcome of each sample, see ``write_outcomes``; None where the number is no share of hits.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    samples: int
    slices: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    outcomes: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return a mapping for JSON; NaN and infinite numbers become None, since JSON cannot hold them."""
        found = {key: _finite(value) for key, value in asdict(self).items()}
        if self.outcomes is None:
            found.pop("outcomes")
        return found


@dataclass
class EvaluationContext:
    """What evaluators may use.

    Args:
        clip: A ContrastiveModule, the path of its checkpoint or run folder (loaded at the first use), or None.
        generator: A LatentDiffusionModule, the path of its checkpoint or run folder, or None.
        output: Folder for images and tables that an evaluator writes.
        device: Device of the networks.
        codec: A LatentCodecModule, a LatentCodec, the path of a checkpoint, run folder or folder of diffusers, or None.
    """

    clip: Any
    generator: Any
    output: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    codec: Any = None
    used: set[str] = field(default_factory=set, init=False)  # clip, generator, codec: what this evaluator asked for

    def __post_init__(self) -> None:
        """Keep the paths, which the networks replace at their first use."""
        paths = {name: getattr(self, name) for name in ("clip", "codec")}
        self._given = {name: str(path) for name, path in paths.items() if isinstance(path, str | Path)}

    def require_clip(self) -> Any:
        """Return the contrastive module on the device, in eval mode.

        Raises:
            UserError: No encoder was given, or the file holds something else.
        """
        self.used.add("clip")
        if self.clip is None:
            raise UserError("an evaluator needs an encoder: give its checkpoint or run folder with --clip")
        if isinstance(self.clip, str | Path):
            from leam_mm.model_address import load_encoder

            self.clip = load_encoder(self.clip).to(self.device)
        return self.clip

    def require_generator(self) -> Any:
        """Return the diffusion module on the device, in eval mode.

        Raises:
            UserError: No generator was given, or the file holds something else.
        """
        self.used.add("generator")
        if self.generator is None:
            raise UserError("an evaluator needs a generator: give its checkpoint or run folder with --generator")
        if isinstance(self.generator, str | Path):
            from leam_mm.model_address import load_generator

            self.generator = load_generator(self.generator).to(self.device)
            # They may be those of the generator, or others to be evaluated.
            self.generator.frozen.elsewhere.update(self._given)
        return self.generator

    def require_codec(self) -> Any:
        """Return the codec on the device, the averaged one if an average is kept.

        Raises:
            UserError: No codec was given, or the folder holds something else.
        """
        self.used.add("codec")
        if self.codec is None:
            raise UserError("an evaluator needs a codec: give its run folder, or one of diffusers, with --codec")
        if isinstance(self.codec, str | Path):
            from leam_mm.codecs.pretrained_codec import load_codec

            self.codec = load_codec(self.codec).to(self.device)
        return self.codec.ema_codec() if hasattr(self.codec, "ema_codec") else self.codec


class Evaluator:
    """Base class: an evaluator holds its settings and turns a context into metrics.

    A subclass takes typed settings in its constructor (they are its YAML) and opens files and networks only in `run`.
    The attributes of an instance are written to results.jsonl as its settings.
    """

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Measure.

        Args:
            context: The networks under test, the device, and the folder for images.

        Returns:
            The metrics, most important first.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run")


def _finite(value: Any) -> Any:
    """Return the value with every NaN or infinite float in it replaced by None."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
