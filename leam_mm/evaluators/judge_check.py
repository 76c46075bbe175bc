"""Test of a judge on images whose answer is known, before its scores are used.

Each image gets one question, so that the answers are independent: half of the questions are right, half are wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.image_judge import ImageJudge, ask
from leam_mm.evaluators.ranks import over_ranks
from leam_mm.intervals.indicative import indicative
from leam_mm.intervals.intervals import mean_interval, wilson_interval
from leam_mm.intervals.outcomes import write_outcomes
from leam_mm.prompts.atoms import Atom
from leam_mm.prompts.known_images import Scene
from leam_mm.prompts.prompt_set import Concept
from leam_mm.prompts.scene_atoms import atom_of, scene_words
from leam_mm.prompts.scene_facts import placed_objects

FEWEST_KNOWN = 20  # images


@dataclass(frozen=True)
class KnownAnswer:
    """One image (H, W, 3) uint8 with a question of some kind; the atom's answer is the truth."""

    image: numpy.ndarray
    atom: Atom
    kind: str


@dataclass(frozen=True)
class JudgeCheck:
    """What a check found.

    Args:
        metrics: Accuracy, Brier score and overconfidence, with intervals.
        doubt: Why scores of this judge are only indicative; "" if it was right often enough.
        summary: Accuracy in a few words, for the note of every score.
    """

    metrics: list[Metric]
    doubt: str
    summary: str


def known_answers(scenes: Iterable[tuple[numpy.ndarray, Scene]], seed: int = 0) -> list[KnownAnswer]:
    """Return one question for each known image; the kinds of questions, right and wrong ones alternate.

    Args:
        scenes: Images with their descriptions.
        seed: Seed of the choice of wrong questions.

    Raises:
        UserError: There are too few images.
    """
    found = list(scenes)
    _refuse_few(len(found))
    words, random = scene_words([scene for _, scene in found]), numpy.random.default_rng([seed, 8])
    turns: dict[str, int] = {}
    answers = []
    for image, scene in found:
        objects, families = placed_objects(scene), list(words.families(scene).items())
        turn = turns.get(scene["kind"], 0)
        turns[scene["kind"]] = turn + 1
        kind, choices = families[turn // 2 % len(families)]
        # A question of the family may be right by chance, about the other object of a pair.
        wrong = [number for number, choice in enumerate(choices) if not choice.fact.holds(objects)]
        truth = turn % 2 == 0 or not wrong
        atom = atom_of(choices, 0 if truth else int(random.choice(wrong)))
        answers.append(KnownAnswer(image, atom.with_answer(truth), kind.removeprefix("first ").removeprefix("second ")))
    return answers


def known_concepts(
    images: Iterable[tuple[numpy.ndarray, str]], concepts: Sequence[Concept], seed: int = 0
) -> list[KnownAnswer]:
    """Return one question for each image: about its own concept, and about another one of the kind, in turn.

    Args:
        images: Images with the id of the concept that they show.
        concepts: The concepts; each shows what its atoms ask for, and no other of its kind does.
        seed: Seed of the choice of wrong questions.

    Raises:
        UserError: There are too few images.
    """
    by_id, random = {concept.id: concept for concept in concepts}, numpy.random.default_rng([seed, 9])
    answers: list[KnownAnswer] = []
    for image, name in images:
        own = by_id[name]
        others = [other for other in concepts if other.kind == own.kind and other.id != own.id]
        truth = len(answers) % 2 == 0 or not others
        asked = own if truth else others[int(random.integers(len(others)))]
        atom = asked.atoms[int(random.integers(len(asked.atoms)))]
        answers.append(KnownAnswer(image, atom if truth else atom.with_answer(not atom.answer), own.kind))
    _refuse_few(len(answers))
    return answers


def _refuse_few(count: int) -> None:
    if count < FEWEST_KNOWN:
        raise UserError(f"a judge is tested on at least {FEWEST_KNOWN} known images, and there are {count}")


def check_judge(
    judge: ImageJudge, known: Sequence[KnownAnswer], least: float, prefix: str, device: torch.device
) -> JudgeCheck:
    """Ask a judge all known questions.

    Args:
        judge: A prepared judge.
        known: Images and questions.
        least: Accuracy in [0, 1] that the whole interval must reach; otherwise the judge's scores are indicative.
        prefix: Start of the metrics' names.
        device: Device for communication between ranks.
    """

    def compute(number: int) -> Tensor:
        image = torch.from_numpy(numpy.array(known[number].image)).permute(2, 0, 1)[None]
        return torch.from_numpy(ask(judge, image, known[number].atom))

    yes = over_ranks(len(known), 1, lambda part: part.start, compute, device).numpy()
    truth = numpy.array([answer.atom.answer for answer in known])
    kinds = numpy.array([answer.kind for answer in known])
    # An even probability is no answer, so it counts as wrong.
    right = numpy.where(truth, yes > 0.5, yes < 0.5)
    low, high = wilson_interval(int(right.sum()), len(right))
    accuracy, note = float(right.mean()), f"{len(known)} images with known answers, one question each; {judge.protocol}"
    slices = {
        **{f"kind={kind}": _share(right[kinds == kind]) for kind in dict.fromkeys(kinds.tolist())},
        **{f"answer={word}": _share(right[truth == side]) for word, side in (("yes", True), ("no", False))},
    }
    outcomes = write_outcomes(right, [f"{number} {answer.atom.question}" for number, answer in enumerate(known)])
    brier, over = (yes - truth) ** 2, numpy.maximum(yes, 1 - yes) - right
    metrics = [
        Metric(
            f"{prefix}/accuracy", accuracy, low, high, "fraction", len(known), slices, f"chance 50 %; {note}", outcomes
        ),
        _mean(f"{prefix}/brier", brier, "fraction", f"squared error: 0 is perfect, .25 is guessing; {note}"),
        # A difference, which may be negative.
        _mean(f"{prefix}/overconfidence", over, "", f"mean confidence minus accuracy: 0 is calibrated; {note}"),
    ]
    summary = f"judge right in {accuracy:.1%} ({low:.1%} to {high:.1%}) of {len(known)} known images"
    doubt = "" if low >= least else indicative(f"{summary}, and {least:.0%} are asked of it")
    return JudgeCheck(metrics, doubt, doubt or summary)


def _share(right: numpy.ndarray) -> dict[str, float | int]:
    low, high = wilson_interval(int(right.sum()), len(right))
    value = float(right.mean()) if len(right) else float("nan")
    return {"value": value, "low": low, "high": high, "samples": len(right)}


def _mean(name: str, values: numpy.ndarray, unit: str, note: str) -> Metric:
    low, high = mean_interval(values)
    return Metric(name, float(values.mean()), low, high, unit, len(values), note=note)
