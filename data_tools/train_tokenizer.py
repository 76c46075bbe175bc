"""Train one subword vocabulary for all languages, and measure the tokens that each language needs.

    python data_tools/train_tokenizer.py --shards shards/train --output tokenizer --vocabulary 4096 --context-length 32

The method is in data_tools/corpora/tokenizer_training.py. ``tokenizer_report.json`` holds, by language, tokens per word
and the share of captions that are cut. transformers.AutoTokenizer and open_clip.tokenizer.HFTokenizer load the folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table

from data_tools.corpora.tokenizer_training import balanced_text, measure, read_captions, save, train
from leam_mm.command_line import PositiveInt, Range, Share, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.run_lock import beside, run_lock


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the program.

    Args:
        shards: One or more shard folders.
        output: Folder of the tokenizer.
        overwrite: Replace OUTPUT if it exists.
        vocabulary: Number of ids, special ones included.
        context_length: Longest text in tokens; begin, end and one token need 3.
        languages: Codes of the languages to use; by default all that occur.
        temperature: 0 gives all languages equal weight, 1 weights them by their text.
        characters: Most characters to train on.
    """

    shards: list[Path]
    output: Path
    overwrite: bool = False
    vocabulary: int = 4096
    context_length: Annotated[int, Range(least=3)] = 32
    languages: list[str] | None = None
    temperature: Share = 0.0
    characters: PositiveInt = 20_000_000


def print_report(languages: dict[str, dict[str, object]], context_length: int) -> None:
    """Print the table of tokens by language."""
    table = Table("", "captions", "per word", "/ English", "per caption", "/ English", f"over {context_length}")
    table.title = "tokens"
    for language, values in languages.items():
        relative = [values[f"{name}_relative_to_english"] for name in ("tokens_per_word", "tokens_per_caption")]
        shown = ["not measured" if value is None else f"{value:.2f}" for value in relative]
        table.add_row(
            language,
            f"{values['captions']:,}",
            f"{values['tokens_per_word']:.2f}",
            shown[0],
            f"{values['tokens_per_caption']:.1f}",
            shown[1],
            f"{values['share_cut']:.2%}",
        )
    Console().print(table)


def main(args: list[str] | None = None) -> None:
    """Read captions, train, measure, save."""
    settings = parse_settings(TokenizerSettings, __doc__, args)
    if settings.output.exists() and not settings.overwrite:
        raise UserError(f"{settings.output} exists already: give another --output, or --overwrite to replace it")
    with run_lock(beside(settings.output), settings.output):
        write_tokenizer(settings)


def write_tokenizer(settings: TokenizerSettings) -> None:
    """Train a tokenizer, measure it and save it."""
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
    fewer = f" (requested {settings.vocabulary}; the text has no more pairs to merge)"
    note = "" if size == settings.vocabulary else fewer
    print(f"{settings.output}: vocabulary {size}{note}, begin {size - 2}, end {size - 1}, pad 0")


if __name__ == "__main__":
    run(main)
