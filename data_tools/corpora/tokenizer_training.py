"""Train a subword vocabulary for several languages, and measure the tokens that each language needs.

Byte-level BPE (Sennrich et al. 1508.07909, on bytes as in GPT-2): no character of any language is unknown. Text is
normalised to NFC and lower case. Ids: 0 pad, last but one begin, last end. The end of a text has the highest id, so
that open_clip's argmax pooling finds it.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError
from leam_mm.files import atomic_folder

log = logging.getLogger(__name__)
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SMALLEST = 256 + 3  # all bytes, pad, begin, end
MEASURED = 20_000  # most captions measured per language


def read_captions(folders: list[Path], languages: list[str] | None = None) -> dict[str, Counter[str]]:
    """Count each caption of all samples, by language; languages that are asked for and do not occur are logged.

    Raises:
        UserError: A sample has no captions, or none of the given languages occurs.
    """
    captions: dict[str, Counter[str]] = {}
    for folder in folders:
        for key, members in read_samples(folder):
            try:
                for caption in sample_captions(read_sample_json(members)):
                    if languages is None or caption["language"] in languages:
                        captions.setdefault(caption["language"], Counter())[caption["text"]] += 1
            except UserError as error:
                raise UserError(f"{folder}: sample {key}: {error}") from None
    where = ", ".join(map(str, folders))
    captions = {language: counts for language, counts in captions.items() if any(text.strip() for text in counts)}
    absent = [language for language in languages or [] if language not in captions]
    if not captions:
        raise UserError(f"{where}: no caption in {' or '.join(absent) or 'any language'}: give other --shards")
    if absent:
        log.warning(
            "%s: no caption in %s, so the tokenizer is trained on %s", where, ", ".join(absent), ", ".join(captions)
        )
    return dict(sorted(captions.items()))


def balanced_text(captions: dict[str, Counter[str]], temperature: float, budget: int, seed: int = 0) -> Iterator[str]:
    """Give captions so that the share of each language is proportional to its characters ** temperature.

    Args:
        captions: Count of each caption, by language.
        temperature: 0 gives all languages equal shares (small ones are repeated), 1 keeps their shares.
        budget: Number of characters of all captions together.
        seed: Seed of the order of the captions.
    """
    size = {language: sum(len(text) * n for text, n in counts.items()) for language, counts in captions.items()}
    weight = {language: characters**temperature for language, characters in size.items()}
    for number, (language, counts) in enumerate(captions.items()):
        target = budget * weight[language] / sum(weight.values())
        texts = [text for text, n in sorted(counts.items()) for _ in range(n)]
        if not size[language]:
            raise UserError(f"all captions in {language!r} are empty: leave the language out with --languages")
        order = np.random.default_rng([seed, number]).permutation(len(texts))
        given, position = 0, 0
        while given < target:
            text = texts[order[position % len(order)]]
            given, position = given + len(text), position + 1
            yield text


def train(text: Iterator[str], vocabulary: int) -> Tokenizer:
    """Train the byte-level BPE; the vocabulary is smaller than requested if the text has too few different words."""
    if vocabulary < SMALLEST:
        raise UserError(f"--vocabulary is {vocabulary}: give at least {SMALLEST} (256 bytes, pad, begin, end)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    # Added after training, so that they get the two highest ids.
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (BEGIN, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A $B {END}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (BEGIN, END)],
    )
    return tokenizer


def measure(
    tokenizer: Tokenizer, captions: dict[str, Counter[str]], context_length: int
) -> dict[str, dict[str, object]]:
    """Measure the tokens that each language needs.

    Returns:
        By language: captions measured, tokens per word, tokens per caption, share of captions cut at the context
        length, and both token numbers relative to English (None without English).
    """
    tokenizer.no_truncation()
    result: dict[str, dict[str, object]] = {}
    for language, counts in captions.items():
        texts = sorted(counts)
        if len(texts) > MEASURED:
            texts = [texts[i] for i in np.random.default_rng(0).choice(len(texts), MEASURED, replace=False)]
        length = np.array([len(item.ids) for item in tokenizer.encode_batch(texts)])
        words = sum(len(text.split()) for text in texts)
        result[language] = {
            "captions": len(texts),
            "tokens_per_word": float((length - 2).sum() / max(words, 1)),
            "tokens_per_caption": float((length - 2).mean()),
            "share_cut": float((length > context_length).mean()),
        }
    for values in result.values():
        for name in ("tokens_per_word", "tokens_per_caption"):
            english = result.get("en", {}).get(name)
            values[f"{name}_relative_to_english"] = None if not english else values[name] / english  # type: ignore[operator]
    return result


def save(tokenizer: Tokenizer, context_length: int, report: dict[str, object], folder: Path) -> None:
    """Write the tokenizer folder atomically."""
    from transformers import PreTrainedTokenizerFast  # slow import, which --help does not need

    with atomic_folder(folder) as temporary:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BEGIN,
            eos_token=END,
            pad_token=PAD,
            model_max_length=context_length,
            padding_side="right",
            truncation_side="right",
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,  # a special token's name in a caption stays text
        )
        fast.save_pretrained(temporary)
        # transformers 5 writes a new class name; versions 4 and 5 both read the old one.
        config = temporary / "tokenizer_config.json"
        renamed = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config.write_text(json.dumps(renamed, indent=2) + "\n")
        (temporary / "tokenizer_report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
