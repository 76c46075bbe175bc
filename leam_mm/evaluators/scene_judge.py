"""Judge of scenes of coloured shapes, without a network: the scene reader finds the objects, and facts decide.

- class_path: leam_mm.evaluators.scene_judge.SceneJudge
  init_args: {scenes: runs/quickstart/scenes}
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.image_judge import ImageJudge
from leam_mm.prompts.atoms import Atom
from leam_mm.prompts.scene_reader import ReadObject, SceneReader


class SceneJudge(ImageJudge):
    """Answers with 0 or 1: a prompt's geometric mean is then 1 if all atoms are right, else 0.

    Args:
        scenes: Folder with scenes.json and shapes.npz, written by data_tools/make_scenes.py.
        name: Part of the metrics' names.
    """

    def __init__(self, scenes: Path, name: str = "scene_reader") -> None:
        """See the class for the arguments."""
        self.scenes, self.name = Path(scenes), name
        self._images: Tensor | None = None
        self._found: list[list[ReadObject]] = []

    def prepare(self, context: EvaluationContext, atoms: Sequence[Atom]) -> None:
        """Open the reader; see ImageJudge."""
        self._reader = SceneReader(self.scenes)
        self.protocol = "scene reader, answers of 0 or 1"
        if other := next((atom for atom in atoms if atom.fact is None), None):
            raise UserError(
                f"the scene reader cannot answer {other.question!r:.80}: use it with prompts that have a `scene`, or "
                "another judge"
            )

    def answer(self, images: Tensor, atom: Atom) -> Tensor:
        """Return 1 where the fact holds among the objects that were read, else 0; see ImageJudge."""
        assert atom.fact is not None
        if self._images is not images:  # all atoms of a prompt are asked about the same images
            self._found = [self._reader.read(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
            self._images = images
        return torch.tensor([float(atom.fact.holds(objects)) for objects in self._found], dtype=torch.float64)
