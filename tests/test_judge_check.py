"""Known images, their questions, and the test of judges on them."""

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from toys.encoders import RiggedEncoder

from data_tools.corpora.scene_corpus import make_scene, write_descriptions
from leam_mm.errors import UserError
from leam_mm.evaluators.encoder_judge import EncoderJudge
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.image_judge import ImageJudge, ask
from leam_mm.evaluators.judge_check import check_judge, known_answers, known_concepts
from leam_mm.evaluators.scene_judge import SceneJudge
from leam_mm.prompts.atoms import Atom
from leam_mm.prompts.known_images import drawn_scenes
from leam_mm.prompts.prompt_set import Concept
from leam_mm.prompts.scene_atoms import SceneWords, atom_of
from leam_mm.prompts.scene_facts import SceneFact, placed_objects

CPU = torch.device("cpu")
CONTEXT = EvaluationContext(None, None, Path())
THINGS = [
    {"colour": "red", "shape": "circle", "x": 0.2, "y": 0.5},
    {"colour": "blue", "shape": "square", "x": 0.8, "y": 0.4},
    {"colour": "red", "shape": "square", "x": 0.5, "y": 0.9},
]


class Oracle(ImageJudge):
    """Answers known questions in their order, the first ones wrong, all with one confidence."""

    def __init__(self, known: list, wrong: int, confidence: float = 1.0) -> None:
        self.answers = iter([answer.atom.answer != (number < wrong) for number, answer in enumerate(known)])
        self.confidence, self.protocol = confidence, "oracle"

    def answer(self, images: Tensor, atom: Atom) -> Tensor:
        yes = next(self.answers)
        return torch.tensor([self.confidence if yes else 1 - self.confidence])


@pytest.mark.parametrize(
    ("fact", "holds"),
    [
        (SceneFact("red"), True),
        (SceneFact("green"), False),
        (SceneFact("red", "square"), True),
        (SceneFact("blue", "circle"), False),
        (SceneFact(count=3), True),
        (SceneFact("red", count=2), True),
        (SceneFact("red", "circle", count=2), False),
        (SceneFact("red", "circle", relation="left_of", other=("blue", "square")), True),
        (SceneFact("red", "circle", relation="above", other=("blue", "square")), False),
        (SceneFact("red", "square", relation="below", other=("blue", "square")), True),
        (SceneFact("red", "circle", relation="left_of", other=("green", "square")), False),
    ],
)
def test_facts_of_a_scene(fact: SceneFact, holds: bool) -> None:
    assert fact.holds(placed_objects({"objects": THINGS})) is holds


def test_metadata_that_is_no_scene_is_refused() -> None:
    for metadata in ({}, {"objects": [{"colour": "red"}]}, {"objects": 3}, {"objects": [3]}):
        with pytest.raises(ValueError, match="not that of a scene"):
            placed_objects(metadata)


def test_a_family_has_one_right_question_and_its_foils() -> None:
    words = SceneWords(("blue", "orange", "red"), ("circle", "cross"))
    pair = words.families({"objects": THINGS[:2], "relation": "left_of"})
    atom = atom_of(pair["relation"], 0)
    assert atom.question == "Is the red circle to the left of the blue square?"
    assert atom.statement == "a red circle to the left of a blue square" and len(atom.foils) == 3
    three = words.families({"objects": [{"colour": "orange", "shape": "cross"}] * 3})
    assert [choice.statement for choice in three["number"]] == [
        "three orange crosses", "an orange cross", "two orange crosses", "four orange crosses"
    ]  # fmt: skip
    wrong = atom_of(three["colour"], 1)
    assert wrong.question == "Is there a blue shape?" and "three orange crosses" in wrong.foils


def test_known_questions_are_true_to_the_scene_and_balanced() -> None:
    scenes = list(drawn_scenes(240, 32))
    found = known_answers(scenes)
    truths = [answer.atom.fact.holds(placed_objects(scene)) for answer, (_, scene) in zip(found, scenes, strict=True)]
    assert truths == [answer.atom.answer for answer in found] and sum(truths) == 120
    kinds = {answer.kind for answer in found}
    assert kinds == {"colour", "shape", "number", "object", "relation"}
    for kind in kinds:
        share = numpy.mean([answer.atom.answer for answer in found if answer.kind == kind])
        assert share == pytest.approx(0.5, abs=0.05), kind
    with pytest.raises(UserError, match="at least 20 known images"):
        known_answers(scenes[:19])


def test_questions_about_concepts_alternate_between_their_own_and_those_of_others() -> None:
    foils = {"a": "b", "b": "a", "c": "d", "d": "c"}
    concepts = [
        Concept(name, "first" if name in "ab" else "second", {"en": name}, (Atom(name, True, name, (other,)),))
        for name, other in foils.items()
    ]
    shown = ["abcd"[number // 2 % 4] for number in range(40)]  # each concept with a right and with a wrong question
    known = known_concepts([(numpy.zeros((4, 4, 3), numpy.uint8), name) for name in shown], concepts)
    assert [answer.atom.answer for answer in known] == [True, False] * 20
    asked = [answer.atom.question for answer in known]
    assert asked == [name if turn % 2 == 0 else foils[name] for turn, name in enumerate(shown)]
    with pytest.raises(UserError, match="at least 20 known images, and there are 19"):
        known_concepts([(numpy.zeros((4, 4, 3), numpy.uint8), "a")] * 19, concepts)


@pytest.mark.parametrize(("wrong", "doubt"), [(0, False), (4, False), (30, True), (60, True)])
def test_a_judge_below_its_accuracy_is_doubted(wrong: int, doubt: bool) -> None:
    known = known_answers(drawn_scenes(120, 16))
    check = check_judge(Oracle(known, wrong), known, 0.9, "x/judge", CPU)
    accuracy = check.metrics[0]
    assert accuracy.name == "x/judge/accuracy" and accuracy.value == pytest.approx(1 - wrong / 120)
    assert accuracy.low <= accuracy.value <= accuracy.high and accuracy.slices["answer=no"]["samples"] == 60
    assert bool(check.doubt) is doubt and ("indicative only" in check.summary) is doubt


def test_brier_score_and_overconfidence_in_closed_form() -> None:
    known = known_answers(drawn_scenes(100, 16))
    found = {m.name: m for m in check_judge(Oracle(known, 20, 0.9), known, 0.5, "x", CPU).metrics}
    assert found["x/brier"].value == pytest.approx(0.8 * 0.01 + 0.2 * 0.81)
    assert found["x/overconfidence"].value == pytest.approx(0.9 - 0.8)
    assert found["x/overconfidence"].low < 0.1 < found["x/overconfidence"].high


def test_overconfidence_of_a_cautious_judge_is_negative_and_no_fraction() -> None:
    known = known_answers(drawn_scenes(100, 16))
    metrics = check_judge(Oracle(known, 0, 0.8), known, 0.5, "x", CPU).metrics
    found = {metric.name: metric for metric in metrics}["x/overconfidence"]
    assert found.value == pytest.approx(-0.2) and found.unit == ""  # a release refuses fractions below 0
    assert all(0 <= metric.value <= 1 for metric in metrics if metric.unit == "fraction" and metric.value is not None)


def test_a_judge_that_does_not_decide_is_wrong() -> None:
    known = known_answers(drawn_scenes(40, 16))
    check = check_judge(Oracle(known, 0, 0.5), known, 0.9, "x", CPU)
    assert check.metrics[0].value == 0 and check.metrics[1].value == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("answers", "message"),
    [([torch.nan, 0.5], "gives NaN"), ([0.5, 1.5], "not a probability"), ([0.5], "of shape")],
)
def test_answers_are_checked(answers: list[float], message: str) -> None:
    judge = ImageJudge()
    judge.answer = lambda images, atom: torch.tensor(answers)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=message):
        ask(judge, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), Atom("Is there a cup?"))


def test_the_scene_judge_is_right_about_drawn_scenes(tmp_path: Path) -> None:
    write_descriptions(tmp_path, size=32, seed=0)
    from data_tools.corpora.scene_corpus import render
    from leam_mm.data.image_file import open_image

    scenes = []
    for number in range(60):
        image = numpy.asarray(open_image(render(make_scene("test", 0, number), 0, "test", number, 32)).convert("RGB"))
        scenes.append((image, make_scene("test", 0, number).metadata()))
    known, judge = known_answers(scenes), SceneJudge(tmp_path)
    judge.prepare(CONTEXT, [answer.atom for answer in known])
    assert check_judge(judge, known, 0.9, "x", CPU).metrics[0].value > 0.97
    with pytest.raises(UserError, match="cannot answer 'Is there a cup"):
        judge.prepare(CONTEXT, [Atom("Is there a cup?")])


def test_the_encoder_judge_is_the_softmax_between_statement_and_foils() -> None:
    # Images are numbered by their first pixel; the text of an image is its number.
    numbers = {"zero": 0, "one": 1, "two": 2, "null": 0}
    encoder = RiggedEncoder(lambda image: image[:, 0, 0, 0].long(), numbers.__getitem__, 3)
    german = Atom("Ist es null?", True, "null", ("one",))
    atom = Atom("Is it zero?", True, "zero", ("one", "two"), {"de": german})
    images = torch.stack([torch.full((3, 8, 8), number, dtype=torch.uint8) for number in (0, 1)])
    context = EvaluationContext(encoder, None, Path())
    judge = EncoderJudge()
    judge.prepare(context, [atom])
    e = numpy.exp(-100.0)
    assert ask(judge, images, atom) == pytest.approx([1 / (1 + 2 * e), e / (1 + 2 * e)], rel=1e-6)
    translated = EncoderJudge(language="de")
    translated.prepare(context, [atom])
    assert ask(translated, images, atom) == pytest.approx([1 / (1 + e), e / (1 + e)], rel=1e-6)
    with pytest.raises(UserError, match="a statement and foils"):
        judge.prepare(context, [Atom("Is it zero?")])
