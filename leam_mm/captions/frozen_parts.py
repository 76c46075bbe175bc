"""What a generator needs and does not train: the text tower, the codec and the statistics of its latents.

They stay in their own files and are opened when they are needed. Their digests are recorded when a training starts, and
other files in their place are refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.caption_encoders import SeveralCaptionEncoders, caption_width, encoder_file, open_caption_encoder
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

STATISTICS = "codec_statistics.json"


class FrozenParts:
    """Opens the parts once and checks them; a plain object, so they are in no state_dict, not moved, not trained.

    Args:
        clip: Checkpoint or run folder of the ContrastiveModule whose text tower reads the captions, or a folder of
            transformers, or several of these in the order in which the latents were encoded; or None.
        codec: Checkpoint or run folder of the LatentCodecModule, or a folder of diffusers, or None.
        latents: Folder whose codec_statistics.json the latents were normalised with; None takes the codec's own.
    """

    def __init__(self, clip: str | list[str] | None, codec: str | None, latents: str | None) -> None:
        """See the class for the arguments."""
        encoders: list[str | None] = ([*clip] or [None]) if isinstance(clip, list) else [clip]
        self.paths = {f"clip_{number}" if number else "clip": path for number, path in enumerate(encoders)}
        self.paths["codec"] = codec
        self.latents = latents
        self.opened: dict[str, Any] = {}
        self.further: list[Callable[[], dict[str, Any]]] = []  # what else has entries in the record
        self.recorded: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Path and digest of the parts' files, and the latents' statistics: what the training depends on."""
        if self.recorded is None:
            files = {name: encoder_file(path) for name, path in self.paths.items() if path is not None}
            self.recorded = {name: {"path": str(file), "sha256": digest} for name, (file, digest) in files.items()}
            if self.latents is not None:
                self.recorded["latents"] = _read_statistics(Path(self.latents))
            for entries in self.further:
                self.recorded |= entries()
        return self.recorded

    def compare(self, before: dict[str, Any]) -> None:
        """Refuse to go on with other parts than those of an earlier record."""
        now = self.record()
        for name in sorted(before.keys() & now.keys()):
            if before[name]["sha256"] != now[name]["sha256"]:
                raise UserError(
                    f"the checkpoint was trained with another {name} ({before[name]['path']}) than is there now "
                    f"({now[name]['path']}, other content): put the old one back, or start a new run folder"
                )

    def caption_encoder(self, context_dim: int) -> CaptionEncoder:
        """The frozen text tower, or what answers like one.

        Args:
            context_dim: Channels of the caption states that the denoiser takes.
        """
        if "clip" not in self.opened:
            names = [name for name in self.paths if name.startswith("clip")]
            encoders = [self._open_captions(name) for name in names]
            encoder = encoders[0] if len(encoders) == 1 else SeveralCaptionEncoders(encoders)
            if caption_width(encoder) != context_dim:
                raise UserError(
                    f"the text tower of {', '.join(str(self.paths[name]) for name in names)} has "
                    f"{caption_width(encoder)} channels, the denoiser expects {context_dim}: set "
                    "model.init_args.denoiser.init_args.context_dim to it"
                )
            self.opened["clip"] = encoder
        return self.opened["clip"]

    def _open_captions(self, name: str) -> Any:
        """One text encoder, after comparing its digest with the record."""
        path = self._path(name)
        self._compare_one(name, encoder_file(path)[1])
        return open_caption_encoder(path)

    def codec(self, channels: int) -> LatentCodec:
        """The frozen codec, normalising as the latents were.

        Args:
            channels: Of the latents that the denoiser takes.
        """
        if "codec" not in self.opened:
            from leam_mm.codec_module import load_codec

            path = self._path("codec")
            self._compare_one("codec", encoder_file(path)[1])
            codec = load_codec(path).requires_grad_(False)
            if "latents" in self.record():
                codec.load_statistics(self.record()["latents"]["statistics"])
            if codec.channels != channels:
                raise UserError(
                    f"the codec of {self.paths['codec']} has {codec.channels} channels, the denoiser takes "
                    f"{channels}: set model.init_args.denoiser.init_args.in_channels to it"
                )
            self.opened["codec"] = codec
        return self.opened["codec"]

    def _path(self, name: str) -> str:
        path = self.paths[name]
        if path is None:
            raise UserError(f"this needs the {name}, but model.init_args.{name} is empty: name its checkpoint")
        return path

    def _compare_one(self, name: str, found: str) -> None:
        """Refuse a file that is not the recorded one."""
        recorded = self.record()[name]["sha256"]
        if found != recorded:
            raise UserError(
                f"{self.paths[name]} has changed since this generator was trained with it (sha256 {found[:12]}, then "
                f"{recorded[:12]}): put the old {name} back, or train the generator again"
            )


def _read_statistics(folder: Path) -> dict[str, Any]:
    file = folder / STATISTICS
    try:
        statistics = json.loads(file.read_text(encoding="utf-8"))
        return {"path": str(file), "sha256": file_sha256(file), "statistics": statistics}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): encode the latents with data_tools/encode_latents.py"
        ) from None
