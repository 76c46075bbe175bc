"""Train one subword vocabulary for all languages, and measure what each language pays for it.

    python data_tools/train_tokenizer.py --shards shards/train --output tokenizer --vocabulary 4096 --context-length 32

Byte-level BPE (Sennrich et al. 1508.07909, on bytes as in GPT-2): no letter of any language is unknown. Text is put in
NFC and lower case. Ids: 0 pad, last but one begin, last end: the end of a text has the highest id, so that open_clip's
argmax pooling finds it. ``tokenizer_report.json`` holds, per language, tokens per word and the share of captions cut.
The folder is loaded by transformers.AutoTokenizer and by open_clip.tokenizer.HFTokenizer.
"""

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError, run

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SMALLEST = 256 + 3  # every byte, pad, begin, end
ENOUGH = 20_000  # captions measured per language


def read_captions(folders: list[Path], languages: list[str] | None = None) -> dict[str, Counter[str]]:
    """Collect how often each caption occurs, per language, from the json of all samples.

    Raises:
        UserError: A sample has no captions, or a wanted language does not occur.
    """
    captions: dict[str, Counter[str]] = {}
    for folder in folders:
        for key, members in read_samples(folder):
            try:
                for caption in json.loads(members["json"])["captions"]:
                    if languages is None or caption["language"] in languages:
                        captions.setdefault(caption["language"], Counter())[caption["text"]] += 1
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{folder}: sample {key} has no readable captions ({error}); run check_shards"
                ) from None
    absent = [language for language in languages or [] if language not in captions]
    if absent or not captions:
        found = ", ".join(sorted(captions)) or "no caption at all"
        raise UserError(f"{', '.join(map(str, folders))}: no caption in {absent or 'any language'} (found: {found})")
    return dict(sorted(captions.items()))


def balanced_text(captions: dict[str, Counter[str]], temperature: float, budget: int, seed: int = 0) -> Iterator[str]:
    """Give captions so that language l has a share proportional to characters_l ** temperature.

    Args:
        captions: Occurrences of each caption, per language.
        temperature: 0: all languages equal (small ones are repeated). 1: as they are.
        budget: Characters in all.
        seed: Seed of the order in which captions are taken.
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
    """Train the byte-level BPE; it may stay smaller than asked when the text has too few different words."""
    if vocabulary < SMALLEST:
        raise UserError(f"--vocabulary is {vocabulary}: {SMALLEST} is the least (256 bytes, pad, begin, end)")
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
    # Added after training, hence the two highest ids.
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
    """Measure what each language pays.

    Returns:
        Per language: captions measured, tokens per word, tokens per caption, share cut at the context length, and both
        token numbers divided by those of English (None without English).
    """
    tokenizer.no_truncation()
    result: dict[str, dict[str, object]] = {}
    for language, counts in captions.items():
        texts = sorted(counts)
        if len(texts) > ENOUGH:
            texts = [texts[i] for i in np.random.default_rng(0).choice(len(texts), ENOUGH, replace=False)]
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
    """Write the tokenizer folder in one go."""
    from transformers import PreTrainedTokenizerFast  # imports slowly, and --help should not

    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BEGIN,
            eos_token=END,
            pad_token=PAD,
            model_max_length=context_length,
            padding_side="right",
            truncation_side="right",
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,  # a caption that spells a special token stays text
        )
        fast.save_pretrained(temporary)
        # transformers 5 writes its own new name of the class; the old one is understood by 4 and 5.
        config = temporary / "tokenizer_config.json"
        named = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config.write_text(json.dumps(named, indent=2) + "\n")
        (temporary / "tokenizer_report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def print_report(languages: dict[str, dict[str, object]], context_length: int) -> None:
    """Print the table of what each language pays."""
    table = Table("", "captions", "per word", "/ English", "per caption", "/ English", f"over {context_length}")
    table.title = "tokens"
    for language, values in languages.items():
        relative = [values[f"{name}_relative_to_english"] for name in ("tokens_per_word", "tokens_per_caption")]
        told = ["not measured" if value is None else f"{value:.2f}" for value in relative]
        table.add_row(
            language,
            f"{values['captions']:,}",
            f"{values['tokens_per_word']:.2f}",
            told[0],
            f"{values['tokens_per_caption']:.1f}",
            told[1],
            f"{values['share_cut']:.2%}",
        )
    Console().print(table)


def main(args: list[str] | None = None) -> None:
    """Read captions, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="one or more shard folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument(
        "--vocabulary", type=int, default=4096, help="number of ids, special ones included (%(default)s)"
    )
    parser.add_argument("--context-length", type=int, default=32, help="longest text in tokens (%(default)s)")
    parser.add_argument("--languages", nargs="+", help="only these language codes (default: all that occur)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: all languages weigh the same, 1: by their text (%(default)s)"
    )
    parser.add_argument("--characters", type=int, default=20_000_000, help="most text to train on (%(default)s)")
    settings = parser.parse_args(args)
    if settings.output.exists() and not settings.overwrite:
        raise UserError(f"{settings.output} exists already: give another --output, or --overwrite to replace it")
    if settings.context_length < 3:
        raise UserError(f"--context-length is {settings.context_length}: begin, end and one token need at least 3")
    if not 0 <= settings.temperature <= 1:
        raise UserError(f"--temperature is {settings.temperature}: give a number from 0 to 1")
    captions = read_captions(settings.shards, settings.languages)
    present = sum(len(text) * n for counts in captions.values() for text, n in counts.items())
    budget = min(settings.characters, 2 * present)
    tokenizer = train(balanced_text(captions, settings.temperature, budget), settings.vocabulary)
    languages = measure(tokenizer, captions, settings.context_length)
    size = tokenizer.get_vocab_size()
    report = {"vocabulary": size, "context_length": settings.context_length, "languages": languages}
    report |= {"temperature": settings.temperature, "characters": budget}
    save(tokenizer, settings.context_length, report, settings.output)
    print_report(languages, settings.context_length)
    asked = "" if size == settings.vocabulary else f" (asked for {settings.vocabulary}; the text has no more to merge)"
    print(f"{settings.output}: vocabulary {size}{asked}, begin {size - 2}, end {size - 1}, pad 0")


if __name__ == "__main__":
    run(main)
