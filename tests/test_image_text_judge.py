from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from toys.image_text_models import WORDS, write_blip2, write_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.image_judge import ask
from leam_mm.evaluators.image_text_judge import ImageTextJudge, first_tokens
from leam_mm.prompts.atoms import Atom

QUESTION = Atom("Is there a red circle?", translations={"de": Atom("ist da ein roter Kreis?")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 3, 16, 16), generator=generator, dtype=torch.uint8)


def opened(folder: Path, **settings: object) -> ImageTextJudge:
    judge = ImageTextJudge(folder, **settings)  # type: ignore[arg-type]
    judge.prepare(EvaluationContext(None, None, folder), [QUESTION])
    return judge


def by_hand(folder: Path, image: torch.Tensor, text: str, yes: list[str], no: list[str]) -> float:
    """Probability from one forward pass without padding, cache and generate()."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    shown = Image.fromarray(image.permute(1, 2, 0).numpy())
    with torch.no_grad():
        logit = model(**processor(images=shown, text=text, return_tensors="pt")).logits[0, -1].double()
    chance = logit.softmax(0)
    first, second = (sum(chance[WORDS.index(word)] for word in words) for words in (yes, no))
    return float(first / (first + second))


def test_the_answer_is_the_share_of_yes_among_both_answers(folder: Path, images: torch.Tensor) -> None:
    found = ask(opened(folder, batch_size=2), images, QUESTION)
    text = "<image> Is there a red circle? Answer with yes or no. assistant"
    expected = [by_hand(folder, image, text, ["yes", "Yes"], ["no", "No"]) for image in images]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.std() > 1e-3  # it depends on the image


def test_a_model_without_chat_template_gets_the_image_before_the_question(tmp_path: Path, images: torch.Tensor) -> None:
    folder = write_llava(tmp_path / "plain", chat=False)
    found = ask(opened(folder), images[:1], QUESTION)
    text = "<image>Is there a red circle? Answer with yes or no."
    assert found[0] == pytest.approx(by_hand(folder, images[0], text, ["yes", "Yes"], ["no", "No"]), abs=1e-5)


def test_a_model_whose_decoder_is_separate(tmp_path: Path, images: torch.Tensor) -> None:
    folder = write_blip2(tmp_path / "blip2")
    found = ask(opened(folder, batch_size=5), images, QUESTION)
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
    for image, answer in zip(images[:2], found, strict=False):
        shown = Image.fromarray(image.permute(1, 2, 0).numpy())
        inputs = processor(images=shown, text="Is there a red circle? Answer with yes or no.", return_tensors="pt")
        with torch.no_grad():
            logit = model(**inputs, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0].double()
        chance = logit.softmax(0)
        first, second = (sum(chance[WORDS.index(word)] for word in words) for words in (("yes", "Yes"), ("no", "No")))
        assert answer == pytest.approx(float(first / (first + second)), abs=1e-5)


def test_exchanged_answers_give_the_rest(folder: Path, images: torch.Tensor) -> None:
    question = {"instruction": "Answer with yes or no."}
    found = ask(opened(folder, **question), images, QUESTION)
    other = ask(opened(folder, **question, yes="no", no="yes"), images, QUESTION)
    assert found + other == pytest.approx(1, abs=1e-9)


def test_questions_in_another_language(folder: Path, images: torch.Tensor) -> None:
    judge = opened(folder, language="de", instruction="ja or nein?", yes="ja", no="nein")
    text = "<image> ist da ein roter Kreis? ja or nein? assistant"
    assert ask(judge, images[:1], QUESTION)[0] == pytest.approx(
        by_hand(folder, images[0], text, ["ja"], ["nein"]), abs=1e-5
    )


def test_wrong_folders_are_named_in_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(UserError) as error:
            opened(wrong)
        assert wrong.name in str(error.value) and "\n" not in str(error.value)
    other = tmp_path / "no_weights"
    other.mkdir()
    for file in folder.glob("*.json"):
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="no image-text model"):
        opened(other)


def test_nan_weights_are_an_error(tmp_path: Path, images: torch.Tensor) -> None:
    folder = write_llava(tmp_path / "nan")
    judge = opened(folder)
    for value in judge._network.parameters():
        value.data.fill_(torch.nan)
    with pytest.raises(UserError, match="gives NaN"):
        ask(judge, images, QUESTION)


def test_answers_that_begin_alike_are_refused() -> None:
    tokenizer = SimpleNamespace(unk_token_id=0, encode=lambda text, add_special_tokens: [7, len(text)])
    with pytest.raises(UserError, match="no tokens that tell"):
        first_tokens(tokenizer, "yes", "no")
