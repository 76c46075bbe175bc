"""How much personal data is found, country by country, and how often something else is mistaken for it.

    python tests/benchmarks/personal_data_rates.py --emoji runs/emoji/drawings/packages

Found must be the labelled captions of tests/personal_data_cases.yaml, and telephone numbers of thirty-two countries in
their national form beside a word and in their international form, drawn from each country's own example. Nothing may be
found in the labelled negatives, in scenes' captions in 24 languages, and in the names of emoji (packages of CLDR, if
they are there). Beside it stands what is found when everything that only looks like personal data counts, too.
"""

import json
import random
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import phonenumbers
import yaml
from phonenumbers import PhoneNumberFormat, PhoneNumberType
from rich.table import Table

from data_tools.corpora.scene_corpus import make_scene
from data_tools.corpora.scene_prompts import captions
from leam_mm.data.personal_data import KINDS, REGIONS, find_personal_data
from leam_mm.errors import run

CASES = Path(__file__).resolve().parents[1] / "personal_data_cases.yaml"


def labelled(text: str) -> tuple[str, list[str]]:
    """A caption, and what must be found in it."""
    return re.sub("[{}]", "", text), re.findall("{(.*?)}", text)


def telephone_captions(number: int) -> list[tuple[str, str, list[str]]]:
    """Country, caption and number: ``number`` valid ones of each country; "bare" is one without a word or country."""
    chance, found = random.Random(0), []
    for region in REGIONS:
        for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE):
            example = phonenumbers.example_number_for_type(region, kind)
            digits = str(example.national_number)
            for _ in range(number):
                for _ in range(200):
                    last = "".join(chance.choices("0123456789", k=3))
                    other = phonenumbers.PhoneNumber()
                    other.merge_from(example)
                    other.national_number = int(digits[:-3] + last)
                    if phonenumbers.is_valid_number_for_region(other, region):
                        break
                home = phonenumbers.format_number(other, PhoneNumberFormat.NATIONAL)
                abroad = phonenumbers.format_number(other, PhoneNumberFormat.INTERNATIONAL)
                found.append((region, f"Tel. {home}", [home]))
                found.append((region, f"shop in town, {abroad}, open", [abroad]))
                found.append((f"{region} bare", f"shop in town, {home}, open", [home]))
    return found


def emoji_names(folder: Path) -> list[str]:
    """Names and keywords in all languages of the packages."""
    found: set[str] = set()
    for path in sorted(folder.glob("cldr-annotations*.tgz")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith("annotations.json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    (content,) = [value for key, value in json.load(file).items() if key.startswith("annotations")]
                    for entry in content.get("annotations", {}).values():
                        found |= {*entry.get("tts", ()), " | ".join(entry.get("default", ()))}
    return sorted(found)


def taken(texts: Iterable[str]) -> dict[str, Any]:
    """How many captions something is found in that is not there, and an upper bound of the rate."""
    texts = list(texts)
    sure = [text for text in texts if find_personal_data(text)]
    shaped = [text for text in texts if find_personal_data(text, shaped=True)]
    bound = (3.0 if not sure else len(sure) + 2 * len(sure) ** 0.5 + 2) / len(texts)
    return {"captions": len(texts), "taken": len(sure), "rate_below_95": bound, "taken_when_shaped_counts": len(shaped),
            "examples": sure[:10]}  # fmt: skip


@measure.benchmark(
    repeats=1,
    emoji=(Path("runs/emoji/drawings/packages"), "folder of the packages of CLDR"),
    telephones=(20, "telephone numbers of each kind and country"),
    scenes=(400, "scenes, each in 24 languages"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure both."""
    cases = yaml.safe_load(CASES.read_text("utf-8"))
    wanted = [
        (kind, country, *labelled(text)) for kind in KINDS for country, rows in cases[kind].items() for text in rows
    ]
    wanted += [("phone", *each) for each in telephone_captions(settings.telephones)]
    total: dict[str, Counter[str]] = {}
    right: dict[str, Counter[str]] = {}
    missed = []
    for kind, country, text, values in wanted:
        found = [text[item.start : item.end].strip("()") for item in find_personal_data(text) if item.kind == kind]
        total.setdefault(kind, Counter())[country] += 1
        if country.endswith("bare"):
            right.setdefault(kind, Counter())[country] += bool(found)
        elif found == [value.strip("()") for value in values]:
            right.setdefault(kind, Counter())[country] += 1
        else:
            missed.append((kind, country, text))
    generator = np.random.default_rng(1)
    scenes = [text for n in range(settings.scenes) for text in captions(make_scene("train", 1, n), generator).values()]
    negatives = {"labelled": taken(cases["none"]), "scenes in 24 languages": taken(scenes)}
    if settings.emoji.is_dir():
        negatives["emoji names"] = taken(emoji_names(settings.emoji))
    else:
        negatives["emoji names"] = {"not measured": f"{settings.emoji} is missing; see gather_emoji"}
    begin = time.process_time()
    for text in scenes:
        find_personal_data(text)
    content: dict[str, Any] = {
        "found": {
            k: {c: [right.get(k, Counter())[c], n] for c, n in sorted(rows.items())} for k, rows in total.items()
        },
        "missed": missed,
        "negatives": negatives,
        "cpu_ms_per_scene_caption": 1e3 * (time.process_time() - begin) / len(scenes),
        "same_work": [measure.require_same("labelled negatives that are taken", negatives["labelled"]["taken"], 0)],
    }
    bare = {name: count for name, count in total["phone"].items() if name.endswith("bare")}
    content["bare telephone numbers"] = sum(right["phone"][name] for name in bare) / sum(bare.values())
    table = Table("kind", "found", "of", "countries with a miss", title="personal data in captions")
    for kind, rows in total.items():
        rows = Counter({country: count for country, count in rows.items() if country not in bare})
        good = Counter({country: right.get(kind, Counter())[country] for country in rows})
        short = [country for country, count in rows.items() if good[country] < count]
        table.add_row(kind, str(good.total()), str(rows.total()), " ".join(short) or "-")
    lines = [f"telephone numbers without country and without a word: {content['bare telephone numbers']:.0%} found"]
    lines += [f"{name}: {numbers}" for name, numbers in negatives.items()]
    return [measure.write_result(content, settings, table, message="\n".join(lines))]


if __name__ == "__main__":
    run(main)
