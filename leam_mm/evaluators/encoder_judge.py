"""Judge by a contrastive encoder: the softmax between a statement and its foils, as in zero-shot classification.

- class_path: leam_mm.evaluators.encoder_judge.EncoderJudge
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import embed_texts
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.image_features import ClipFeatures
from leam_mm.evaluators.image_judge import ImageJudge
from leam_mm.prompts.atoms import Atom

BATCH = 256  # texts in one forward pass


class EncoderJudge(ImageJudge):
    """Probability of the statement among statement and foils, at the encoder's own temperature.

    It says which of the descriptions fits best, and not whether one fits: an image that shows none of them gets a
    confident answer, too.

    Args:
        encoder: Address of an encoder (run, release, folder of open_clip, NAME:TAG); None takes the one of --clip.
        language: Language of statements and foils, where the prompts translate them; otherwise English is used.
        name: Part of the metrics' names.
    """

    def __init__(self, encoder: Path | None = None, language: str = "en", name: str = "encoder") -> None:
        """See the class for the arguments."""
        self.encoder, self.language, self.name = encoder, language, name
        self._images: Tensor | None = None

    def prepare(self, context: EvaluationContext, atoms: Sequence[Atom]) -> None:
        """Load the encoder and embed all statements; see ImageJudge."""
        if self.encoder is None:
            module = context.require_clip()
        else:
            from leam_mm.model_address import load_encoder

            module = load_encoder(self.encoder).to(context.device)
        for atom in atoms:
            if not atom.foils:
                raise UserError(
                    f"an encoder cannot answer {atom.question!r:.80}: give the atom a statement and foils, or use a "
                    "judge that reads questions"
                )
        texts = sorted({text for atom in atoms for text in self._texts(atom)})
        self._rows = {text: row for row, text in enumerate(texts)}
        self._text = embed_texts(module, texts, BATCH, context.device).double()
        network = module.ema_encoder()
        self._scale = float(network.scale) if hasattr(network, "scale") else 100.0
        digest = str(getattr(module, "checkpoint_evidence", {}).get("sha256", ""))[:12]
        self.protocol = f"encoder {digest}, softmax between a statement and its foils, scale {self._scale:.1f}"
        self._features = ClipFeatures(encoder=network).to(context.device)
        self._features.protocol = self.protocol

    def answer(self, images: Tensor, atom: Atom) -> Tensor:
        """Return the share of the statement in the softmax; see ImageJudge."""
        if self._images is not images:  # all atoms of a prompt are asked about the same images
            with torch.no_grad():
                self._image = self._features.extract(images)
            self._images = images
        text = self._text[[self._rows[text] for text in self._texts(atom)]]
        return (self._scale * self._image @ text.T).softmax(dim=1)[:, 0]

    def _texts(self, atom: Atom) -> list[str]:
        asked = atom.in_language(self.language)
        asked = asked if asked.foils else atom
        return [asked.statement, *asked.foils]
