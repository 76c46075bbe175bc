"""What is measured and recorded of a release: everything that its documents may say without a person's word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leam_mm.documents.training_content import TrainingContent
from leam_mm.languages import LANGUAGE_NAMES

# Kinds of stages; the last is a generator's text encoder of transformers, which is taken over.
CONTRASTIVE, GENERATOR, CODEC, TEXT_ENCODER = "clip", "generator", "codec", "text_encoder"
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class StageFacts:
    """One training run of the release.

    Args:
        kind: clip, generator, codec or text_encoder.
        parameters: Number of released parameters.
        samples_seen: Samples it was trained on, repetitions counted; None where the checkpoint does not say.
        checkpoint_sha256: Digest of the checkpoint that the weights were taken from.
        data: Merkle root to name of each shard folder it was trained on.
        energy: The record of callbacks/energy_record.EnergyRecord, or None.
        versions: Versions of the libraries it was trained with.
        base: The weights that it started from: ``weights`` as they were named, ``sha256``, and ``name`` and ``licence``
            where they state them; empty after random initialisation. A part that was taken over has only this.
        changes: What was changed when the run was resumed: key, from, to, and the samples seen then.
        flops: Training compute in FLOP, an estimate from the recipe and the samples seen, recomputed activations
            included; None where it cannot be counted.
        flops_notes: What the estimate assumes or leaves out, one sentence each; the reason where it is None.
        recipe: The resolved settings of the run, as in ``configs/KIND.yaml``; empty for a part that was taken over.
        sources: Merkle root of a folder in ``data`` to the roots of the folders that it was made from, such as the
            shards behind latents.
        samples: Merkle root to number of samples of the folders in ``data`` that were found.
        weights: Which weights are released: an average of the run, or its last ones; empty where nothing states it.
        inference: FLOP of one use of the network: ``kind``, ``size`` and ``flops`` as in ``InferenceUse``; None where
            they were not counted yet.
    """

    kind: str
    parameters: int
    samples_seen: int | None
    checkpoint_sha256: str
    data: dict[str, str]
    energy: dict[str, Any] | None
    versions: dict[str, str]
    base: dict[str, str] = field(default_factory=dict)
    changes: Sequence[dict[str, Any]] = ()
    flops: float | None = None
    flops_notes: Sequence[str] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    weights: str = ""
    inference: Sequence[Mapping[str, Any]] | None = None

    @property
    def trained(self) -> bool:
        """Whether a run of this project trained it; otherwise it was taken over."""
        return bool(self.recipe) or self.samples_seen is not None or bool(self.data)

    @property
    def joules(self) -> float | None:
        """Measured energy in joules; None where it was not measured."""
        return (self.energy or {}).get("joules")

    @property
    def grams(self) -> float | None:
        """Location-based emissions of the measured energy in grams of CO2 equivalents; None where not known."""
        return (self.energy or {}).get("location_grams")

    @property
    def seconds(self) -> float | None:
        """Wall time of the run in seconds; None where it was not measured."""
        return (self.energy or {}).get("seconds")

    @property
    def origins(self) -> set[str]:
        """Merkle roots of the folders that the run read, and of those that these were made from."""
        return set(self.data) | {root for root in self.data for root in self.sources.get(root, ())}


@dataclass(frozen=True)
class DataFacts:
    """One shard folder that was available when the release was made.

    Args:
        name: Name of the folder.
        merkle_root: Its name by content.
        samples: Number of samples.
        licences: Samples by licence, or None where the folder has no ledger.
        legal_bases: Samples by legal basis, or None.
        captions: Captions by language, or None where they were not counted.
    """

    name: str
    merkle_root: str
    samples: int
    licences: dict[str, int] | None = None
    legal_bases: dict[str, int] | None = None
    captions: dict[str, int] | None = None


@dataclass(frozen=True)
class ReleaseFacts:
    """All that the documents of a release say without a person's word.

    Args:
        name: Name of the release.
        licence: Licence of the weights.
        image_size: H = W in pixels of the encoder's images; None without an encoder.
        context_length: Tokens of a caption, begin and end included.
        stages: The training runs, clip first.
        data: Available shard folders.
        metrics: Lines of results.jsonl.
        generated_size: H = W in pixels of generated images; None without a generator.
        low_rank: Whether the generator's low-rank additions are in the release, too.
        straight_paths: Whether the generator is a rectified flow, as the card's lines for editing images require.
        onnx: What became of each network in ONNX: name, files, opset, inputs, output, max_difference to torch, reason;
            empty where ONNX was not asked for.
        denoiser: Kind of the generator's network: PRXDenoiser, UNetDenoiser or SD3Denoiser.
        formats: Folder inside the release that each library loads, by library: open_clip, transformers,
            sentence_transformers, diffusers, onnx.
        files: SHA-256 of each file of the release that its documents do not belong to, by path.
        content: What the available shards hold; None where none were given.
        images: Images of the release that show what the generator makes: path in the release to the text that
            describes it.
        variants: Precisions of further files of weights, with the measured differences of their embeddings,
            predictions and images to float32.
        left_out: Reason why the release has no format for a library, by library.
    """

    name: str
    licence: str
    image_size: int | None
    context_length: int
    stages: Sequence[StageFacts]
    data: Sequence[DataFacts] = ()
    metrics: Sequence[dict[str, Any]] = ()
    generated_size: int | None = None
    low_rank: bool = False
    straight_paths: bool = True
    denoiser: str = "PRXDenoiser"
    onnx: Sequence[Mapping[str, Any]] = ()
    formats: Mapping[str, str] = field(default_factory=lambda: {"open_clip": ".", "diffusers": "."})
    files: Mapping[str, str] = field(default_factory=dict)
    content: TrainingContent | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)

    @property
    def embeds(self) -> bool:
        """Whether an encoder is part of the release."""
        return self.image_size is not None

    @property
    def generates(self) -> bool:
        """Whether a generator is part of the release."""
        return self.generated_size is not None

    @property
    def parameters(self) -> int:
        """Released parameters of all parts."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def flops(self) -> float | None:
        """Estimated training compute of all parts in FLOP; None if any trained part was not counted."""
        counted = [stage.flops for stage in self.stages if stage.trained]
        return None if not counted or None in counted else sum(one or 0.0 for one in counted)

    @property
    def joules(self) -> float | None:
        """Measured energy of all parts in joules; None if any trained part was not measured."""
        return _sum([stage.joules for stage in self.stages if stage.trained])

    @property
    def grams(self) -> float | None:
        """Location-based emissions of all parts in grams of CO2 equivalents; None if any part's are not known."""
        return _sum([stage.grams for stage in self.stages if stage.trained])

    @property
    def seconds(self) -> float | None:
        """Wall time of all training runs in seconds; None if any was not measured."""
        return _sum([stage.seconds for stage in self.stages if stage.trained])

    @property
    def hardware(self) -> str | None:
        """Devices of the training runs as they were recorded; None if any part's are not known."""
        named = [(stage.energy or {}).get("hardware") for stage in self.stages if stage.trained]
        return None if not named or None in named else "; ".join(dict.fromkeys(str(name) for name in named))

    @property
    def measured_languages(self) -> list[str]:
        """Official EU languages with a measured result, by code."""
        found = {str(m["name"]).rpartition("/")[2] for m in self.metrics if m.get("value") is not None}
        return sorted(found & LANGUAGE_NAMES.keys())

    def stage(self, kind: str) -> StageFacts | None:
        """Return the run of a kind, or None if the release has no such part."""
        return next((stage for stage in self.stages if stage.kind == kind), None)


def _sum(numbers: Sequence[float | None]) -> float | None:
    return None if not numbers or None in numbers else float(sum(one or 0.0 for one in numbers))
