"""Codecs whose decoder was marked: they take the place of their originals, since the latents are the same."""

import logging
from pathlib import Path
from typing import Any

import torch

from leam_mm.checkpoint import is_run, read_evidence
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.codecs.pretrained_codec import codec_folder, load_codec
from leam_mm.errors import UserError

MARK = "decoder_mark"  # entry of a codec's evidence beside the weights that it started from
log = logging.getLogger(__name__)


def marked_from(path: Path | str) -> str | None:
    """Return the digest of the codec that a marked codec comes from, or None if a path is no marked codec.

    Args:
        path: Run folder, checkpoint, release or folder of diffusers.
    """
    folder = codec_folder(path)
    if not is_run(folder):
        return None
    pretrained: dict[str, Any] = read_evidence(folder).get("pretrained", {})
    return str(pretrained.get("sha256")) if pretrained.get(MARK) else None


def compare_latents(marked: LatentCodec, original: LatentCodec) -> None:
    """Check that a marked codec differs from its original in nothing that comes before the decoder.

    Raises:
        UserError: It does.
    """
    one, two = (
        {
            name: value
            for name, value in codec.state_dict().items()
            if not name.startswith(("autoencoder.decoder.", "autoencoder.post_quant_conv."))
        }
        for codec in (marked, original)
    )
    wrong = sorted(name for name in one.keys() | two.keys() if not _equal(one.get(name), two.get(name)))
    if wrong:
        raise UserError(
            f"the marked codec differs from its original before the decoder ({wrong[0]}): mark it again with "
            "model.trained: decoder"
        )


def _equal(one: torch.Tensor | None, two: torch.Tensor | None) -> bool:
    return one is not None and two is not None and one.shape == two.shape and torch.equal(one, two)


def takes_place_of(path: Path | str, sha256: str, original: Path | str | None) -> bool:
    """Return whether a codec is the marked form of another one; the encoders are compared where both are there.

    Args:
        path: The codec.
        sha256: Digest of the other one.
        original: Where the other one lay, or None.

    Raises:
        UserError: Its evidence says so, but its encoder or statistics differ.
    """
    if marked_from(path) != sha256:
        return False
    try:
        before = load_codec(original) if original is not None else None
    except UserError:
        before = None
    if before is None or getattr(before, "checkpoint_evidence")["sha256"] != sha256:  # noqa: B009
        log.warning("the original of the marked codec %s is not here: their encoders are not compared", path)
    else:
        compare_latents(load_codec(path), before)
    return True
