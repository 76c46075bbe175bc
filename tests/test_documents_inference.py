"""Operations of one use of the released networks: those that the planner counts for a forward pass."""

from pathlib import Path
from typing import Any

import pytest
from toys.releases import release_facts

from leam_mm.documents.documentation_form import documentation_form
from leam_mm.documents.inference_flops import inference_flops
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import StageFacts
from leam_mm.planning.recipe_file import read_recipe
from leam_mm.planning.recipe_work import recipe_work

CONFIGS = Path(__file__).parent.parent / "configs"


def stage(kind: str, recipe: dict[str, Any]) -> StageFacts:
    return StageFacts(kind, 1, 1, "ab" * 32, {}, None, {}, recipe=recipe)


def test_each_part_is_counted_as_by_the_planner() -> None:
    names = {"clip": "scenes_clip.yaml", "generator": "scenes_generator.yaml", "codec": "scenes_codec.yaml"}
    recipes = {kind: read_recipe([CONFIGS / name]) for kind, name in names.items()}
    uses = {use.kind: use for use in inference_flops(release_facts(stages=[stage(*one) for one in recipes.items()]))}
    assert uses.keys() == {"embed_image", "embed_text", "denoise", "decode"}
    planned = {part.name: part.forward for part in recipe_work(recipes["clip"]).phases[-1].parts}
    assert uses["embed_image"].flops == planned["image tower"]
    assert (uses["embed_text"].size, uses["decode"].size) == (32, 32)
    assert all(use.flops > 1e5 for use in uses.values())
    text = documentation_form(release_facts(stages=[stage(*one) for one in recipes.items()]), PublisherFields(), "en")
    assert "  - embed one image, side in pixels 32: " in text and "| codec | reconstruction |" in text


def test_masking_of_the_training_does_not_cheapen_inference() -> None:
    plain = read_recipe([CONFIGS / "scenes_generator.yaml"])
    masked = read_recipe([CONFIGS / "scenes_generator.yaml", CONFIGS / "overlay_masking.yaml"])
    (one,), (other,) = (
        inference_flops(release_facts(stages=[stage("generator", recipe)])) for recipe in (plain, masked)
    )
    assert one.flops == other.flops


@pytest.mark.parametrize("change", [{"class_path": "os.system"}, {"init_args": {"encoder": 7}}, {}])
def test_settings_that_cannot_be_built_are_left_out(change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    recipe = {"model": {"class_path": "leam_mm.contrastive_module.ContrastiveModule", "init_args": {}} | change}
    assert inference_flops(release_facts(stages=[stage("clip", recipe)])) == []
    assert "the inference of clip is not counted" in caplog.text
