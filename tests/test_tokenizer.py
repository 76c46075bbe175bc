import json
import random
import shutil
import string
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from leam_mm.data.tokenizer import CONFIG, Tokenizer, cut_padding
from leam_mm.errors import UserError


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


def test_endless_captions_take_little_time(toy_tokenizer: Path) -> None:
    """open_clip joins the letters of a word in quadratic time: one of 16,000 took 11 seconds."""
    letters = "".join(random.Random(0).choices(string.ascii_lowercase, k=1_000_000))
    words = " ".join(letters[at : at + 999] for at in range(0, 1_000_000, 999)) * 10  # each below the limit of a word
    for tokenizer in (Tokenizer("open_clip", 77), Tokenizer(toy_tokenizer, 12)):
        begin = time.process_time()
        text, _ = tokenizer.encode(
            ["a red square", letters, " " * 5_000_000 + "a red square", "a red square " + letters, words]
        )
        assert time.process_time() - begin < 5
        assert torch.equal(text[2], text[0]) and torch.equal(text[1], tokenizer.encode([letters[:1000]])[0][0])
        assert torch.equal(text[3, :4], text[0, :4])
        plain = " ".join(letters[at : at + 9] for at in range(0, 4000, 9))  # longer than is kept, and not changed
        assert torch.equal(tokenizer.encode([plain])[0], tokenizer._tokens([plain], tokenizer.context_length))


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


@pytest.mark.parametrize("options", [{}, {"strip_sep_token": True}, {"clean": "lower"}])
def test_tokens_are_those_of_open_clips_tokenizer(toy_tokenizer: Path, options: dict[str, Any]) -> None:
    from open_clip.tokenizer import HFTokenizer

    captions = ["a red square", "", "ein  &amp; <b>Würfel</b>\n", "x " * 200, "ελληνικά 🙂"]
    ours, theirs = Tokenizer(toy_tokenizer, 12), HFTokenizer(str(toy_tokenizer), context_length=12, **options)
    theirs.tokenizer.sep_token = theirs.tokenizer.eos_token
    ours._tokenize = theirs
    for length in (12, 5):
        text, _ = ours.encode(captions, length)
        expected = theirs(captions, length)
        assert text.dtype == expected.dtype and torch.equal(text, expected)


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


@pytest.mark.parametrize(
    "config", [None, {"hf_tokenizer_name": "x"}, {"hf_tokenizer_name": "x", "tokenizer_kwargs": 1}]
)
def test_code_of_a_tokenizer_is_never_run(
    tmp_path: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any] | None
) -> None:
    folder = Path(shutil.copytree(toy_tokenizer, tmp_path / "tokenizer"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if config is not None:
        (folder / CONFIG).write_text(json.dumps({"model_cfg": {"text_cfg": config}}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    with pytest.raises(UserError, match=r"no usable tokenizer|not a valid open_clip config") as caught:
        Tokenizer(folder, 12)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_options_of_a_tokenizer_name_no_files_and_no_code(tmp_path: Path, toy_tokenizer: Path) -> None:
    folder = Path(shutil.copytree(toy_tokenizer, tmp_path / "tokenizer"))
    for options in ({"trust_remote_code": True}, {"bpe_path": "/etc/passwd"}, {"cache_dir": "x"}):
        text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": options}
        (folder / CONFIG).write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
        with pytest.raises(UserError, match=f"sets tokenizer_kwargs {next(iter(options))}: only"):
            Tokenizer(folder, 12)
    text["tokenizer_kwargs"] = {"clean": "canonicalize"}  # type: ignore[dict-item]
    (folder / CONFIG).write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    assert Tokenizer(folder, 12).has_files
