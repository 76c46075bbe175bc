"""What a codec is trained on: settings of its losses and of its adversarial training."""

from dataclasses import dataclass

from lightning.pytorch.cli import OptimizerCallable

from leam_mm.codecs.decoder_mark_loss import DecoderMarkLoss
from leam_mm.losses.reconstruction import PatchDiscriminator, ReconstructionLoss


@dataclass
class CodecLosses:
    """Losses of a codec beside the adversarial one.

    Args:
        reconstruction: Distance of pixels; None takes L1.
        perceptual: Distance of features, or None.
        perceptual_weight: Weight of the perceptual loss; the reconstruction has 1.
        kl_weight: Weight of the KL divergence from the standard normal, per latent value; needs a KLCodec.
        mark: Mark in every decoding, or None. The distances are then taken to the decodings of the codec that the run
            starts from, whose decoder alone is trained.
    """

    reconstruction: ReconstructionLoss | None = None
    perceptual: ReconstructionLoss | None = None
    perceptual_weight: float = 1.0
    kl_weight: float = 0.0
    mark: DecoderMarkLoss | None = None


@dataclass
class Adversarial:
    """Adversarial training of a codec against a discriminator.

    Args:
        discriminator: The network that tells images from reconstructions.
        optimizer: Built over the discriminator; None takes that of the codec.
        weight: Weight of the adversarial loss; the reconstruction has 1.
        adaptive: Multiply the weight at each step so that, at the decoder's last layer, the adversarial gradient is as
            long as that of all other losses (2012.09841); all ranks use the factor of the global batch.
        start_samples: Number of samples seen before the discriminator joins.
        clip: Largest gradient norm of either network. The trainer cannot clip in manual optimization.
    """

    discriminator: PatchDiscriminator
    optimizer: OptimizerCallable | None = None
    weight: float = 0.1
    adaptive: bool = False
    start_samples: int = 0
    clip: float = 1.0
