"""What an evaluation is: a base class, the context it runs in, the number it returns, and the two kinds of interval.

A number comes with its interval, its unit and how many samples it rests on; a number that was not measured is None.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from scipy.stats import binomtest

from leam_mm.errors import UserError


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Args:
        name: Path-like name, for example `scenes/top1/de`.
        value: The number in `unit`, or None where it was not measured; `note` then says why.
        low: Lower end of the 95 % interval, in the same unit; None where there is none.
        high: Upper end of it.
        unit: `fraction` (0 to 1), `distance`, `count`, `seconds` and so on.
        samples: How many samples the number rests on.
        slices: Parts of the number by name; each a mapping of plain values that JSON can hold.
        note: One sentence for the reader: chance level, protocol, reason for None.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    samples: int
    slices: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain mapping for JSON; numbers that are not finite become None, since JSON has no name for them."""
        return {key: _finite(value) for key, value in asdict(self).items()}


@dataclass
class EvaluationContext:
    """What evaluators may use.

    Args:
        clip: A ContrastiveModule, the path of its checkpoint or run folder (loaded at the first use), or None.
        generator: A LatentDiffusionModule, the path of its checkpoint or run folder, or None.
        output: Folder for pictures and tables that an evaluator leaves behind.
        device: Where the networks run.
        codec: A LatentCodecModule, a LatentCodec, the path of a checkpoint, run folder or folder of diffusers, or None.
    """

    clip: Any
    generator: Any
    output: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    codec: Any = None

    def require_clip(self) -> Any:
        """The contrastive module on the device, in eval mode.

        Raises:
            UserError: No encoder was given, or the file holds something else.
        """
        if self.clip is None:
            raise UserError("an evaluator needs an encoder: give its checkpoint or run folder with --clip")
        if isinstance(self.clip, str | Path):
            from leam_mm.checkpoint import load_module
            from leam_mm.contrastive_module import ContrastiveModule

            self.clip = load_module(Path(self.clip), ContrastiveModule).to(self.device)
        return self.clip

    def require_generator(self) -> Any:
        """The diffusion module on the device, in eval mode.

        Raises:
            UserError: No generator was given, or the file holds something else.
        """
        if self.generator is None:
            raise UserError("an evaluator needs a generator: give its checkpoint or run folder with --generator")
        if isinstance(self.generator, str | Path):
            from leam_mm.checkpoint import load_module
            from leam_mm.diffusion_module import LatentDiffusionModule

            self.generator = load_module(Path(self.generator), LatentDiffusionModule).to(self.device)
        return self.generator

    def require_codec(self) -> Any:
        """The codec, averaged where an average is kept, on the device.

        Raises:
            UserError: None was given, or the folder holds something else.
        """
        if self.codec is None:
            raise UserError("an evaluator needs a codec: give its run folder, or one of diffusers, with --codec")
        if isinstance(self.codec, str | Path):
            from leam_mm.codecs.pretrained_codec import load_codec

            self.codec = load_codec(self.codec).to(self.device)
        return self.codec.ema_codec() if hasattr(self.codec, "ema_codec") else self.codec


class Evaluator:
    """Base class: an evaluator holds its settings and turns a context into metrics.

    A subclass takes typed settings in its constructor (they are its YAML) and opens files and networks only in `run`.
    """

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Measure.

        Args:
            context: The networks under test, the device, and the folder for pictures.

        Returns:
            The metrics, most important first.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run")


def wilson_interval(successes: int, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a proportion (Wilson 1927), valid also near 0 and 1 and for few samples.

    Args:
        successes: Number of hits, 0 <= successes <= samples.
        samples: Number of independent trials; with 0 the interval is (0, 1): nothing is known.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    if samples == 0:
        return 0.0, 1.0
    interval = binomtest(successes, samples).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    values: numpy.ndarray,
    statistic: Callable[[numpy.ndarray], float],
    seed: int = 0,
    repeats: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) over the first axis, the axis of independent samples.

    Rows are drawn whole, so columns that belong together (one image in all languages) stay together.

    Args:
        values: (B, ...) one row for each independent sample.
        statistic: Function of such an array.
        seed: Seed of the draws; the same seed gives the same interval.
        repeats: Number of draws.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper percentile of the statistic over the draws.
    """
    if len(values) == 0:
        raise ValueError("bootstrap_interval: no samples")
    generator = numpy.random.default_rng(seed)
    draws = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(repeats)]
    low, high = numpy.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _finite(value: Any) -> Any:
    """The value with every float that is not finite replaced by None, however deep."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
