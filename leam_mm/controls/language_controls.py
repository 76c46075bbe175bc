"""Controls of the audit of language parity: encoders that read one language or all, and tokenizers."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from leam_mm.audits.audit import AuditContext, AuditResult
from leam_mm.audits.language_parity import LanguageParity
from leam_mm.audits.prompt_table import SCENES, read_prompts
from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_images import image_numbers, write_numbered_shards
from leam_mm.data.tokenizer import Tokenizer

LANGUAGES = ["bg", "de", "el", "en", "fi", "mt", "pl", "sv"]
IMAGES = 400
SUBJECT = "audit/language_parity"


def _encoder(reads: Callable[[str, int], bool], tokenizer: Tokenizer | None = None) -> CodedEncoder:
    """Return an encoder that finds the image of a caption where `reads` (code, number) is true."""
    codes = torch.eye(IMAGES + 1)

    def text(caption: str) -> Tensor:
        code, number = caption.split()[0], int(caption.split()[1])
        return codes[number if reads(code, number) else IMAGES]

    return CodedEncoder(lambda image: codes[image_numbers(image)], text, tokenizer)


def _parity(encoder: CodedEncoder, folder: Path) -> AuditResult:
    shards = write_numbered_shards(folder / "held_out", IMAGES, LANGUAGES, lambda code, number: f"{code} {number}")
    context = AuditContext(encoder, None, folder, held_out=shards)
    return LanguageParity(LANGUAGES).run(context)[0]


def _english_only(folder: Path) -> Outcome:
    return _judged(_parity(_encoder(lambda code, number: code == "en"), folder), "fail")


def _equal(folder: Path) -> Outcome:
    # Wrong for every tenth image of each language, other images in each.
    encoder = _encoder(lambda code, number: (number + LANGUAGES.index(code)) % 10 != 0)
    return _judged(_parity(encoder, folder), "pass")


def _fertility(trained_on: Sequence[str], verdict: str, folder: Path) -> Outcome:
    tables = read_prompts(SCENES, "shapes", LANGUAGES)
    texts = {code: [texts[0] for texts in tables[code].texts] for code in LANGUAGES}
    words = [text for code in trained_on for text in texts[code]]
    tokenizer = write_tokenizer(folder / "tokenizer", words)
    shards = write_numbered_shards(
        folder / "held_out", IMAGES, LANGUAGES, lambda code, number: texts[code][number % len(texts[code])]
    )
    flat = torch.ones(2)
    encoder = CodedEncoder(lambda image: flat.expand(len(image), 2), lambda text: flat, tokenizer)
    context = AuditContext(encoder, None, folder, held_out=shards)
    results = {result.audit: result for result in LanguageParity(LANGUAGES).run(context)}
    return _judged(results["language_parity/fertility"], verdict)


def _judged(result: AuditResult, verdict: str) -> Outcome:
    found = f"{result.verdict}: {result.value:.2f} ({result.low:.2f} to {result.high:.2f})"
    return Outcome(found, result.verdict == verdict)


def write_tokenizer(folder: Path, texts: Sequence[str], context_length: int = 32) -> Tokenizer:
    """Train a byte-level tokenizer on a few texts: words of other scripts are split into bytes."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Inner(models.BPE())
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    inner.train_from_iterator(list(texts) * 3, trainer)
    inner.add_special_tokens(["<bos>", "<eos>"])
    ends = [(name, inner.token_to_id(name)) for name in ("<bos>", "<eos>")]
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "padding_side": "right"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=context_length, **names).save_pretrained(folder)
    return Tokenizer(folder, context_length)


def language_controls() -> list[Control]:
    """Return the controls."""
    without_greek = [code for code in LANGUAGES if code != "el"]
    return [
        Control(SUBJECT, "encoder that reads English only", True, "fail", _english_only),
        Control(SUBJECT, "encoder that reads all languages equally well", False, "pass", _equal),
        Control(f"{SUBJECT}/fertility", "tokenizer that splits Greek into bytes", True, "fail",
                partial(_fertility, without_greek, "fail")),
        Control(f"{SUBJECT}/fertility", "tokenizer trained on all languages", False, "pass",
                partial(_fertility, LANGUAGES, "pass")),
    ]  # fmt: skip
