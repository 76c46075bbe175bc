"""The loss with which a codec's decoder learns to mark every image, after Stable Signature (2303.15435).

A small extractor reads k bits from changed images. Of marked decodings they must agree with the message; of unmarked
images they must be fair and uncorrelated. Stable Signature trains its extractor beforehand, with messages of a second
network; here it is trained together with the decoder, which takes minutes on a CPU, and reads this codec's mark alone.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from leam_mm.data.sample_order import sample_generator
from leam_mm.errors import UserError
from leam_mm.losses.reconstruction import widened
from leam_mm.marking.image_changes import ImageChanges
from leam_mm.marking.mark_extractor import MarkExtractor, parse_message

LEAST_DEVIATION = 1e-4


class DecoderMarkLoss(nn.Module):
    """Cross-entropy of the message's bits in marked decodings, and correlation of the bits in unmarked images.

    Args:
        extractor: The network, trained with the decoder.
        message: The message in hexadecimal digits; None draws it from the seed.
        weight: Weight of this loss at the end; the distance between marked and unmarked decodings has 1.
        first_weight: The same at the beginning, when decoder and extractor have to find a mark at all; it falls
            geometrically over the first 60 % of the training.
        decorrelation: Weight of the squared correlations within this loss.
        changes: What happens to images before they are read.
        groups: Parts of a batch, each of which is changed in its own way.
        seed: Seed of changes and message.
    """

    message: Tensor

    def __init__(
        self,
        extractor: MarkExtractor,
        message: str | None = None,
        weight: float = 0.006,
        first_weight: float = 0.1,
        decorrelation: float = 0.15,
        changes: ImageChanges = ImageChanges(),  # noqa: B008 (frozen)
        groups: int = 4,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not (0 < weight <= first_weight and decorrelation > 0 and groups >= 1):
            raise UserError(
                f"weight {weight}, first_weight {first_weight}, decorrelation {decorrelation}, groups {groups} of "
                "DecoderMarkLoss: give weights above 0, a first one that is not the smaller, and at least 1 group"
            )
        self.extractor, self.weight, self.decorrelation = extractor, weight, decorrelation
        self.first_weight, self.changes, self.groups, self.seed = first_weight, changes, groups, seed
        drawn = sample_generator(seed, 0, "message").integers(0, 2, extractor.bits).astype(bool)
        bits = parse_message(message, extractor.bits) if message is not None else drawn
        self.register_buffer("message", torch.from_numpy(bits))

    def weight_at(self, progress: float) -> float:
        """Return the weight after a share of the training, in [0, 1]."""
        return self.first_weight * (self.weight / self.first_weight) ** min(1.0, progress / 0.6)

    def forward(self, marked: Tensor, unmarked: Tensor, image: Tensor, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the share of bits of marked decodings that agree with the message, both scalars.

        Marked and unmarked decodings are changed alike: the mean difference of their bits is the mark's.

        Args:
            marked: Decodings (B, 3, H, W), about [-1, 1], with gradient.
            unmarked: Decodings of the same latents by the unmarked codec, (B, 3, H, W).
            image: The images themselves, which are unmarked, too, (B, 3, H, W).
            sample_index: (B,) int64, which names the changes.
        """
        number = int(sample_index[0])
        found, plain = (self._read(one, sample_generator(self.seed, number, "mark")) for one in (marked, unmarked))
        others = self._read(image, sample_generator(self.seed, number, "unmarked"))
        # In units of the unmarked images' deviation, so that neither an offset nor a factor lowers the loss.
        spread = torch.cat([plain - plain.mean(0), others - others.mean(0)])
        deviation = spread.square().mean(0).sqrt() + LEAST_DEVIATION
        found = (found - plain.mean(0)) / deviation
        wanted = self.message.to(found).expand_as(found)
        error = functional.binary_cross_entropy_with_logits(found, wanted)
        agree = ((found > 0) == self.message).float().mean()
        return error + self.decorrelation * self._correlation(spread / deviation), agree

    def _read(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        parts = widened(image).chunk(min(self.groups, len(image)))
        return widened(torch.cat([self.extractor(self.changes(part, generator)) for part in parts]))

    @staticmethod
    def _correlation(plain: Tensor) -> Tensor:
        """Return the squared correlations of each bit with the others, summed, as a mean over the bits."""
        table = plain.T @ plain / len(plain)
        return (table - torch.diag(torch.diag(table))).square().sum() / len(table)
