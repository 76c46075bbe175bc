"""The frozen parts of a generator: text encoder, codec and the statistics of its latents.

They stay in their own files and are opened when needed. A checkpoint records their digests and refuses other files.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.caption_encoders import SeveralCaptionEncoders, caption_width, encoder_file, open_caption_encoder
from leam_mm.captions.moved_parts import find_part
from leam_mm.checkpoint import REBUILDING
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.codecs.marked_codec import takes_place_of
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

STATISTICS = "codec_statistics.json"


@dataclass(eq=False)
class FrozenParts:
    """Opens the frozen parts once and checks their digests.

    It is not a torch module: the parts are in no state dict, are not moved with the generator and not trained.

    Args:
        clip: Checkpoint or run folder of a ContrastiveModule whose text tower reads the captions, or a folder of
            transformers, or several of these in the order in which the latents were encoded. Needed for caption
            dropout, for sampling, and for batches of images.
        codec: Checkpoint or run folder of a LatentCodecModule, or a folder of diffusers. Needed for sampling and for
            batches of images.
        latents: Folder whose codec_statistics.json the latents were normalised with; None takes the codec's own.
    """

    clip: str | list[str] | None = None
    codec: str | None = None
    latents: str | None = None

    paths: dict[str, str | None] = field(init=False, repr=False)
    opened: dict[str, Any] = field(init=False, repr=False, default_factory=dict)
    further: list[Callable[[], dict[str, Any]]] = field(init=False, repr=False, default_factory=list)
    """Functions that return further entries of the record."""
    recorded: dict[str, Any] | None = field(init=False, repr=False, default=None)
    origin: str | None = field(init=False, repr=False, default=None)
    """The checkpoint file that the record comes from, beside which parts are looked for."""
    elsewhere: dict[str, str] = field(init=False, repr=False, default_factory=dict)
    """Where parts may lie now, by name; taken if their digests are the recorded ones."""

    def __post_init__(self) -> None:
        """Name the text encoders clip, clip_1, ...; take the record of the checkpoint that is being rebuilt."""
        encoders: list[str | None] = ([*self.clip] or [None]) if isinstance(self.clip, list) else [self.clip]
        self.paths = {f"clip_{number}" if number else "clip": path for number, path in enumerate(encoders)}
        self.paths["codec"] = self.codec
        rebuilding = REBUILDING.get() or {}
        self.recorded, self.origin = rebuilding.get("frozen"), rebuilding.get("file")

    def record(self) -> dict[str, Any]:
        """Return path and digest of each part, and the latents' statistics, as the checkpoint or the files state them.

        Raises:
            UserError: A file is missing.
        """
        if self.recorded is None:
            files = {name: encoder_file(path) for name, path in self.paths.items() if path is not None}
            self.recorded = {name: {"path": str(file), "sha256": digest} for name, (file, digest) in files.items()}
            if self.latents is not None:
                self.recorded["latents"] = _read_statistics(Path(self.latents))
            for entries in self.further:
                self.recorded |= entries()
        return self.recorded

    def compare(self, before: dict[str, Any]) -> None:
        """Refuse parts that differ from those of an earlier record."""
        now = self.record()
        for name in sorted(before.keys() & now.keys()):
            if before[name].get("sha256") != now[name]["sha256"]:
                raise UserError(
                    f"the checkpoint was trained with another {name} ({before[name].get('path')}) than is there now "
                    f"({now[name]['path']}, other content): put the old one back, or start a new run folder"
                )

    def caption_encoder(self, context_dim: int) -> CaptionEncoder:
        """Return the frozen text encoder, or another encoder with the same methods.

        Args:
            context_dim: Channels of the caption states that the denoiser takes.
        """
        if "clip" not in self.opened:
            names = [name for name in self.paths if name.startswith("clip")]
            encoders = [open_caption_encoder(self._checked(name)) for name in names]
            encoder = encoders[0] if len(encoders) == 1 else SeveralCaptionEncoders(encoders)
            if caption_width(encoder) != context_dim:
                raise UserError(
                    f"the text tower of {', '.join(str(self.paths[name]) for name in names)} has "
                    f"{caption_width(encoder)} channels, the denoiser expects {context_dim}: set "
                    "model.init_args.denoiser.init_args.context_dim to it"
                )
            self.opened["clip"] = encoder
        return self.opened["clip"]

    def latent_codec(self, channels: int) -> LatentCodec:
        """Return the frozen codec with the normalisation of the training latents.

        Args:
            channels: Channels of the latents that the denoiser takes.
        """
        if "codec" not in self.opened:
            codec = load_codec(self._checked("codec")).requires_grad_(False)
            if "latents" in self.record():
                codec.load_statistics(self.record()["latents"]["statistics"])
            if codec.channels != channels:
                raise UserError(
                    f"the codec of {self.paths['codec']} has {codec.channels} channels, the denoiser takes "
                    f"{channels}: set model.init_args.denoiser.init_args.in_channels to it"
                )
            self.opened["codec"] = codec
        return self.opened["codec"]

    def _checked(self, name: str) -> str:
        """Return the path of a part whose digest equals the recorded one; a part that was moved is looked for."""
        path = self.paths[name]
        given = self.elsewhere.get(name)
        if path is None:
            raise UserError(f"this needs the {name}, but model.init_args.frozen.{name} is empty: name its checkpoint")
        recorded = str(self.record().get(name, {}).get("sha256"))
        if given is not None and name == "codec" and takes_place_of(given, recorded, self.codec):
            self.paths[name] = given
            return given
        if given is not None and encoder_file(given)[1] == recorded:
            self.paths[name] = given
            return given
        try:
            found = encoder_file(path)[1]
        except UserError:
            if self.origin is None:
                raise
            self.paths[name] = str(find_part(name, path, recorded, Path(self.origin)))
            return str(self.paths[name])
        if name == "codec" and found != recorded and takes_place_of(path, recorded, self.codec):
            return path
        if found != recorded:
            raise UserError(
                f"{path} has changed since this generator was trained with it (sha256 {found[:12]}, then "
                f"{recorded[:12]}): put the old {name} back, or train the generator again"
            )
        return path


def _read_statistics(folder: Path) -> dict[str, Any]:
    file = folder / STATISTICS
    try:
        statistics = json.loads(file.read_text(encoding="utf-8"))
        return {"path": str(file), "sha256": file_sha256(file), "statistics": statistics}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): encode the latents with data_tools/encode_latents.py"
        ) from None
