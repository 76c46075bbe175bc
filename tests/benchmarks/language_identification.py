"""Share of captions whose language is found: the vote, py3langid alone, pycld2 alone, by language and number of words.

The texts are captions of scenes (a few dozen words in 24 languages, none of which any weight was fitted on) and the
CLDR names of emoji, of the half that the vote's weights have not seen. The page's language is given once as it is, once
as another language of the EU, and once not at all.
"""

import hashlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pycld2
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from rich.console import Console
from rich.table import Table

from data_tools.corpora.emoji_images import NAMES, read_package
from data_tools.corpora.emoji_names import Names, group_of, read_names
from data_tools.corpora.scene_corpus import make_scene
from data_tools.corpora.scene_prompts import captions
from data_tools.links.language_vote import EU_LANGUAGES, EUROPEAN, SAME, UNDETERMINED, clean_text, vote
from leam_mm.errors import UserError, run
from leam_mm.intervals.intervals import wilson_interval

PACKAGES = Path("runs/emoji/drawings/packages")
SEED = 5
WORLD = ("af", "az", "eo", "fil", "hy", "id", "ja", "ka", "kk", "ms", "so", "sw", "uz", "vi", "zu")
PAIRS = (
    *("cs sk", "da nb", "da sv", "nb sv", "nb nn", "hr sl", "hr sr", "hr bs", "es pt", "es gl", "gl pt", "ca es"),
    *("bg mk", "ru uk", "et fi", "lt lv", "de nl", "de lb", "fo is", "fr it", "en fr", "ga gd", "it mt", "it ro"),
)
WORDS = ("1", "2", "3", "4 or more")
Text = tuple[str, str]  # language, text


def scene_texts(scenes: int) -> list[Text]:
    """Captions of test scenes, each wording once."""
    found: dict[Text, None] = {}
    for number in range(scenes):
        words = np.random.default_rng([SEED, 1, number, 2])
        found |= dict.fromkeys(captions(make_scene("test", SEED, number), words, 0.0).items())
    return list(found)


def read_emoji(packages: Path, languages: list[str]) -> dict[str, Names]:
    """Names from the two packages that gather_emoji keeps; empty where they are not there."""
    files: dict[str, bytes] = {}
    for package in NAMES:
        archive = next(iter(sorted(packages.glob(f"{package.name}-[0-9]*.tgz"))), None)
        if archive is None:
            return {}
        files |= read_package(package, archive)
    found = {}
    for language in languages:
        try:
            found |= read_names(files, [language])
        except UserError:
            continue  # some small languages have no names
    return found


def emoji_texts(names: dict[str, Names], per_language: int) -> list[Text]:
    """Names of base emoji of the half that was not fitted on, without those that the other half also has as a word."""
    texts = []
    for language, said in names.items():
        seen = {code for code in said.name if not hashlib.sha256(group_of(code).encode()).digest()[0] % 2}
        fitted = {said.name[code] for code in seen} | {word for code in seen for word in said.keywords[code]}
        unseen = [code for code in said.name if code not in seen and group_of(code) == code]
        choice = sorted({said.name[code] for code in unseen if clean_text(said.name[code])} - fitted)
        random.Random(SEED).shuffle(choice)
        texts += [(language, text) for text in choice[:per_language]]
    return texts


def single_voters() -> dict[str, Callable[[str], str]]:
    """The two libraries as they come, and py3langid restricted to the languages of Europe that it knows."""
    whole = LanguageIdentifier.from_model_file(MODEL_FILE)
    europe = LanguageIdentifier.from_model_file(MODEL_FILE)
    europe.set_languages([code for code in europe.labels if SAME.get(code, code) in EUROPEAN])

    def named(text: str) -> str:
        code = pycld2.detect(text, isPlainText=True, bestEffort=True)[2][0][1]
        return UNDETERMINED if code == "un" else SAME.get(code, code)

    def of(model: LanguageIdentifier) -> Callable[[str], str]:
        return lambda text: SAME.get(model.classify(text)[0], model.classify(text)[0])

    return {"py3langid": of(whole), "py3langid, languages of Europe": of(europe), "pycld2": named}


def answers_of(texts: list[Text]) -> tuple[dict[str, list[str]], list[float]]:
    """Answers of every side, and the confidence of the vote without a page."""
    said = [text for _, text in texts]
    pick = random.Random(SEED)
    wrong = [pick.choice([code for code in EU_LANGUAGES if code != language]) for language, _ in texts]
    alone = vote(said)
    answers = {name: [voter(text) for text in said] for name, voter in single_voters().items()}
    answers["vote"] = [found.language for found in alone]
    answers["vote, page's language"] = [found.language for found in vote(said, [language for language, _ in texts])]
    answers["vote, another page"] = [found.language for found in vote(said, wrong)]
    return answers, [found.confidence for found in alone]


def shares(texts: list[Text], answers: list[str], chosen: Callable[[Text], bool]) -> dict[str, Any]:
    """Right, undetermined and wrong among the chosen texts."""
    pairs = [(text[0], answer) for text, answer in zip(texts, answers, strict=True) if chosen(text)]
    count = len(pairs)
    if not count:
        return {"texts": 0}  # nothing was measured
    right = sum(a == b for a, b in pairs)
    silent = sum(b == UNDETERMINED for _, b in pairs)
    return {
        "texts": count,
        "right": right / count,
        "interval": list(wilson_interval(right, count)),
        "undetermined": silent / count,
        "wrong": (count - right - silent) / count,
    }


def percent(found: dict[str, Any]) -> str:
    """Share right as it is printed."""
    return f"{found['right']:.1%}" if found["texts"] else "not measured"


def length_of(text: Text) -> str:
    return WORDS[min(len(text[1].split()), 4) - 1]


def evaluate(texts: list[Text]) -> dict[str, Any]:
    """All tables of one kind of texts; its means weigh each language of the EU alike."""
    answers, confidence = answers_of(texts)
    languages = sorted({language for language, _ in texts})
    result: dict[str, Any] = {"texts": len(texts), "sides": {}}
    for side, given in answers.items():
        by_language = {code: shares(texts, given, lambda text, code=code: text[0] == code) for code in languages}
        eu = [by_language[code]["right"] for code in languages if code in EU_LANGUAGES]
        world = sum(by_language[code]["texts"] for code in languages if code in WORLD)
        confused = Counter((text[0], answer) for text, answer in zip(texts, given, strict=True))
        taken = sum(n for (true, answer), n in confused.items() if true in WORLD and answer in EUROPEAN)
        result["sides"][side] = {
            "eu_mean": float(np.mean(eu)),
            "eu": shares(texts, given, lambda text: text[0] in EU_LANGUAGES),
            "other_european": shares(texts, given, lambda text: text[0] in EUROPEAN - frozenset(EU_LANGUAGES)),
            "by_words": {
                length: shares(
                    texts, given, lambda text, length=length: text[0] in EU_LANGUAGES and length_of(text) == length
                )
                for length in WORDS
            },
            "by_language": by_language,
            "confusion": {
                pair: [
                    confused[first, second] / max(1, by_language[first]["texts"])
                    for first, second in (pair.split(), pair.split()[::-1])
                ]
                for pair in PAIRS
                if all(code in by_language for code in pair.split())
            },
            "world_taken_for_european": taken / world if world else None,
        }
    bins: dict[int, list[bool]] = defaultdict(list)
    for (language, _), answer, sure in zip(texts, answers["vote"], confidence, strict=True):
        if answer != UNDETERMINED and language in EU_LANGUAGES:
            bins[min(9, int(sure * 10))].append(answer == language)
    result["calibration"] = {
        f"{low / 10:.1f} to {low / 10 + 0.1:.1f}": {"texts": len(hits), "right": float(np.mean(hits))}
        for low, hits in sorted(bins.items())
    }
    return result


def print_tables(name: str, result: dict[str, Any], console: Console) -> None:
    """Print what a reader wants first."""
    table = Table(
        "", "EU", "95 %", "und", "wrong", "other European", *WORDS, title=f"{name}: {result['texts']:,} texts"
    )
    for side, found in result["sides"].items():
        eu, lengths = found["eu"], [found["by_words"][length] for length in WORDS]
        cells = [percent(eu), f"{eu['interval'][0]:.1%} to {eu['interval'][1]:.1%}", f"{eu['undetermined']:.1%}"]
        cells += [f"{eu['wrong']:.1%}", percent(found["other_european"]), *map(percent, lengths)]
        table.add_row(side, *cells)
    console.print(table)
    sides = ("pycld2", "py3langid", "vote", "vote, page's language")
    table = Table("language", *sides, title=f"{name}: share right by language")
    for code in next(iter(result["sides"].values()))["by_language"]:
        rows = [result["sides"][side]["by_language"][code] for side in sides]
        table.add_row(
            code, *(f"{row['right']:.0%} ({row['interval'][0]:.0%}-{row['interval'][1]:.0%})" for row in rows)
        )
    console.print(table)
    table = Table("pair", *sides, title=f"{name}: first taken for second / second for first")
    for pair in result["sides"]["vote"]["confusion"]:
        found = [result["sides"][side]["confusion"][pair] for side in sides]
        table.add_row(pair, *(f"{one:.1%} / {other:.1%}" for one, other in found))
    console.print(table)


@measure.benchmark(
    repeats=1,
    scenes=(400, "test scenes"),
    names=(400, "emoji names in each language"),
    packages=(PACKAGES, "folder of CLDR's packages"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure and write language_identification.json."""
    console, content = Console(soft_wrap=True), {}
    scenes = scene_texts(settings.scenes)
    kinds = {"scenes": scenes}
    names = read_emoji(settings.packages, sorted({*EUROPEAN, *WORLD}))
    if names:
        kinds["emoji names"] = emoji_texts(names, settings.names)
    else:
        print(f"no CLDR packages in {settings.packages} (data_tools/gather_emoji.py fetches them): scenes only")
    for name, texts in kinds.items():
        content[name] = evaluate(texts)
        print_tables(name, content[name], console)
    begin = time.process_time()
    vote([text for _, text in scenes])
    speed = len(scenes) / (time.process_time() - begin)
    counts = {len(answers) for texts in kinds.values() for answers in answers_of(texts[:50])[0].values()}
    same = measure.require_same("number of answers of all sides to the same texts", len(counts) - 1, 0)
    content |= {"captions_per_cpu_second": speed, "same_work": [same]}
    return [measure.write_result(content, settings, message=f"vote: {speed:,.0f} captions per CPU second")]


if __name__ == "__main__":
    run(main)
