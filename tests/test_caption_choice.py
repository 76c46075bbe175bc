from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from leam_mm.data.caption_choice import CaptionMixture, choose_caption
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.tokenizer import Tokenizer, cut_padding
from leam_mm.errors import UserError

CAPTIONS = [
    {"text": "ein Hund", "language": "de"},
    {"text": "a dog", "language": "en"},
    {"text": "a brown dog", "language": "en"},
    {"text": "madra", "language": "ga"},
]


def drawn(count: int = 600, **settings: object) -> Counter[str]:
    chosen = [choose_caption(CAPTIONS, sample_generator(0, n, "caption"), **settings) for n in range(count)]  # type: ignore[arg-type]
    return Counter(str(caption["text"]) for caption in chosen)


def test_language_first_then_caption() -> None:
    counts = drawn()
    english = counts["a dog"] + counts["a brown dog"]
    assert all(abs(count / 600 - 1 / 3) < 0.06 for count in (counts["ein Hund"], english, counts["madra"]))
    assert abs(counts["a dog"] / english - 0.5) < 0.12


def test_language_weights_are_relative() -> None:
    counts = drawn(language_weights={"de": 2.0, "ga": 0.0})
    assert counts["madra"] == 0
    assert abs(counts["ein Hund"] / 600 - 2 / 3) < 0.06


def test_languages_limit_where_they_can() -> None:
    assert set(drawn(50, languages=["ga"])) == {"madra"}
    assert len(drawn(50, languages=["mt"])) > 1  # a sample without any of them keeps its captions


def test_choice_is_a_function_of_seed_and_number() -> None:
    generators = [sample_generator(3, n, "caption") for n in (5, 5, 6)]
    first, again, _ = (choose_caption(CAPTIONS, generator) for generator in generators)
    assert first == again
    reordered = choose_caption(CAPTIONS[::-1], sample_generator(3, 5, "caption"))
    assert reordered["language"] == first["language"]  # languages are sorted, whatever their place in the json


def test_tokens_are_framed_padded_and_counted(toy_tokenizer: Path) -> None:
    tokenizer = Tokenizer(toy_tokenizer, 12)
    text, length = tokenizer.encode(["a red square", "", "Quadrat, grün", "x" * 100])
    assert text.shape == (4, 12) and text.dtype == torch.int64 and length.dtype == torch.int64
    assert length[1] == 2 and length[3] == 12
    for row, count in zip(text, length.tolist(), strict=True):
        assert row[0] == tokenizer.end - 1 and row[count - 1] == tokenizer.end
        assert torch.all(row[count:] == 0) and torch.all(row[1 : count - 1] < tokenizer.end - 1)
    assert tokenizer.vocabulary == tokenizer.end + 1


def test_case_and_composition_do_not_matter(toy_tokenizer: Path) -> None:
    tokenizer = Tokenizer(toy_tokenizer, 12)
    text, _ = tokenizer.encode(["A RED square", "a red square", "gr\u00fcn", "gru\u0308n"])
    assert torch.equal(text[0], text[1]) and torch.equal(text[2], text[3])


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_tokenizer"):
        Tokenizer(tmp_path, 12)


def word_tokenizer(folder: Path, kind: str) -> Path:
    """A tokenizer in the manner of BERT (its end is a separator) or of SigLIP (padded with its end token)."""
    from tokenizers import Tokenizer as Words
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "square", "green"]
    words = Words(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = "[CLS] $A [SEP]" if kind == "bert" else "$A [SEP]"
    words.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    special = {"pad_token": "[PAD]", "sep_token": "[SEP]"} if kind == "bert" else {}
    special = special or {"pad_token": "[SEP]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "pad", "lengths"), [("bert", 0, [4, 2, 8]), ("siglip", 2, [3, 1, 8])])
def test_padding_and_end_of_any_tokenizer(tmp_path: Path, kind: str, pad: int, lengths: list[int]) -> None:
    tokenizer = Tokenizer(word_tokenizer(tmp_path, kind), 8)
    text, length = tokenizer.encode(["red square", "", "a red square a green square a red square"])
    assert (tokenizer.vocabulary, tokenizer.pad, tokenizer.end, tokenizer.has_files) == (8, pad, 2, True)
    assert length.tolist() == lengths
    for row, count in zip(text, lengths, strict=True):
        assert row[count - 1] == tokenizer.end and torch.all(row[count:] == pad)


def test_english_vocabulary_of_open_clip() -> None:
    import open_clip

    tokenizer = Tokenizer("open_clip", 77)
    texts = ["a diagram", "wow !", "x " * 100, ""]
    text, length = tokenizer.encode(texts)
    assert torch.equal(text, open_clip.get_tokenizer("ViT-B-32")(texts))
    assert (tokenizer.vocabulary, tokenizer.end, tokenizer.pad) == (49408, 49407, 0) and not tokenizer.has_files
    assert length.tolist() == [4, 4, 77, 2] and torch.equal(length, text.argmax(dim=1) + 1)
    assert int(text[1, 2]) == 256  # "!" at the end of a word; inside words it is 0, as the padding


def test_tokenizers_without_padding_are_refused(toy_tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    changed = AutoTokenizer.from_pretrained(toy_tokenizer)
    changed.padding_side = "left"
    changed.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="pads on the left"):
        Tokenizer(tmp_path, 12)


def test_padding_is_cut_to_the_longest() -> None:
    text = torch.arange(12).reshape(2, 6)
    assert torch.equal(cut_padding(text, torch.tensor([2, 4])), text[:, :4])


def test_zero_weight_of_all_present_languages_still_gives_a_caption() -> None:
    weights = {"de": 0.0, "en": 0.0, "ga": 0.0}
    assert choose_caption(CAPTIONS, np.random.default_rng(0), language_weights=weights) in CAPTIONS


KINDS = [
    {"text": "ein Hund", "language": "de", "source": "original"},
    {"text": "a dog", "language": "en", "source": "original"},
    {"text": "a brown dog sits in the grass", "language": "en", "source": "synthetic"},
    {"text": "a dog in grass", "language": "en", "source": "synthetic"},
    {"text": "the grass is green", "language": "en", "source": "synthetic"},
    {"text": "dog jpg", "language": "en", "source": "filename"},
]


def test_sources_and_lengths_in_closed_form() -> None:
    mixture = CaptionMixture({"original": 3.0, "synthetic": 1.0, "filename": 0.0}, short=1.0, long=2.0, long_from=5)
    weights = {"de": 1.0, "en": 4.0}
    chances = {  # language, then source, then length, then one of those that are left
        "ein Hund": 1 / 5,
        "a dog": 4 / 5 * 3 / 4,
        "a brown dog sits in the grass": 4 / 5 * 1 / 4 * 2 / 3,
        "a dog in grass": 4 / 5 * 1 / 4 * 1 / 3 / 2,
        "the grass is green": 4 / 5 * 1 / 4 * 1 / 3 / 2,
    }
    assert sum(chances.values()) == pytest.approx(1)
    draws = 6000
    found = Counter(
        str(choose_caption(KINDS, sample_generator(2, n, "caption"), None, weights, mixture)["text"])
        for n in range(draws)
    )
    assert found.keys() == chances.keys()
    for text, chance in chances.items():
        assert abs(found[text] / draws - chance) < 4 * (chance * (1 - chance) / draws) ** 0.5, text


def test_a_mixture_of_equal_chances_keeps_the_languages() -> None:
    generators = [(sample_generator(0, n, "caption"), sample_generator(0, n, "caption")) for n in range(200)]
    for one, other in generators:  # the language is drawn first, from the same number
        mixed = choose_caption(KINDS, other, mixture=CaptionMixture({"original": 9.0}))
        assert choose_caption(KINDS, one)["language"] == mixed["language"]


def test_what_has_no_chance_is_drawn_where_there_is_nothing_else() -> None:
    none = CaptionMixture({"original": 0.0, "synthetic": 0.0, "filename": 0.0})
    assert {str(choose_caption(KINDS, np.random.default_rng(n), mixture=none)["text"]) for n in range(200)} == {
        str(caption["text"]) for caption in KINDS
    }
    synthetic = CaptionMixture({"original": 0.0, "filename": 0.0}, long=0.0, long_from=5)
    found = {str(choose_caption(KINDS, np.random.default_rng(n), mixture=synthetic)["text"]) for n in range(200)}
    assert found == {"a dog in grass", "the grass is green"}  # and so German, which has neither, is never drawn


def test_captions_without_a_source_are_told() -> None:
    with pytest.raises(UserError, match=r"the caption 'ein Hund' has none: drop captions\.mixture\.sources, or encode"):
        choose_caption(CAPTIONS, np.random.default_rng(0), mixture=CaptionMixture({"original": 2.0}))
    assert choose_caption(CAPTIONS, np.random.default_rng(0), mixture=CaptionMixture(short=2.0)) in CAPTIONS


@pytest.mark.parametrize(
    "settings", [{"sources": {"a": -1.0}}, {"short": 0.0, "long": 0.0}, {"long": float("nan")}, {"long_from": 0}]
)
def test_impossible_mixture_is_refused(settings: dict) -> None:
    with pytest.raises(UserError, match=r"captions\.mixture has"):
        CaptionMixture(**settings)
