"""Base class of judges: models that answer yes-or-no questions about images with a probability."""

from collections.abc import Sequence

import numpy
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.prompts.atoms import Atom


class ImageJudge:
    """Answers questions about images.

    A subclass takes typed settings in its constructor (they are its YAML) and loads its model in ``prepare``.

    Attributes:
        name: Part of the metrics' names.
        protocol: What decides the answers, in one line; complete after ``prepare``.
    """

    name: str = "judge"
    protocol: str = ""

    def prepare(self, context: EvaluationContext, atoms: Sequence[Atom]) -> None:
        """Load the model and whatever all questions need.

        Args:
            context: Device, and the encoder for judges that use it.
            atoms: Every question that will be asked.

        Raises:
            UserError: The model cannot be loaded, or the judge cannot answer one of the questions.
        """

    def answer(self, images: Tensor, atom: Atom) -> Tensor:
        """Return the probability of "yes".

        Args:
            images: (B, 3, H, W) uint8.
            atom: The question.

        Returns:
            (B,) in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__} does not define answer")


def ask(judge: ImageJudge, images: Tensor, atom: Atom) -> numpy.ndarray:
    """Return a judge's probabilities of "yes" (B,) float64, checked.

    Raises:
        UserError: An answer is NaN, or is not a probability.
    """
    found = judge.answer(images, atom).detach().double().cpu().numpy()
    if found.shape != (len(images),):
        raise UserError(f"the judge {judge.name} gives answers of shape {found.shape} for {len(images)} images")
    if not numpy.isfinite(found).all():
        raise UserError(f"the judge {judge.name} gives NaN for {atom.question!r:.80}: its weights are damaged")
    if found.min(initial=0) < -1e-6 or found.max(initial=1) > 1 + 1e-6:
        raise UserError(f"the judge {judge.name} gives {found.max():.4g} for {atom.question!r:.80}: not a probability")
    return found.clip(0, 1)
