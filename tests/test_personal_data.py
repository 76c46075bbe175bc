import re
import time
from pathlib import Path

import numpy as np
import phonenumbers
import pytest
import yaml
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from data_tools.corpora.scene_corpus import make_scene
from data_tools.corpora.scene_prompts import captions
from data_tools.links.personal_data_rule import PersonalDataRule
from leam_mm.data.personal_data import KINDS, MAX_CHARACTERS, REGIONS, find_personal_data
from leam_mm.errors import UserError

CASES = yaml.safe_load(Path(__file__).with_name("personal_data_cases.yaml").read_text("utf-8"))
# Numbers without a leading 0 look like any digits, unless a country code or a word precedes them.
WORDS = {"GR": "τηλ.", "BG": "тел.", "PL": "tel.", "FR": "tél. ", "IT": "telefono"}


def labelled(text: str) -> tuple[str, list[str]]:
    return re.sub("[{}]", "", text), re.findall("{(.*?)}", text)


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_captions(kind: str) -> None:
    wrong = []
    for country, texts in CASES[kind].items():
        for text, wanted in map(labelled, texts):
            found = find_personal_data(text)
            if [(item.kind, text[item.start : item.end]) for item in found] != [(kind, value) for value in wanted]:
                wrong.append((country, text, [(item.kind, text[item.start : item.end]) for item in found]))
    assert not wrong


def test_every_country_of_the_eu_and_the_eea_is_labelled() -> None:
    union = set(REGIONS) - {"CH", "GB"}
    assert len(union) == 30 and set(CASES["iban"]) == union
    # No checksum: Cyprus, Liechtenstein, Malta number their people without one; see personal_numbers.yaml.
    assert union - set(CASES["national_id"]) == {"CY", "LI", "MT"}
    assert union - set(CASES["tax_id"]) == {"IS", "LI"}


@pytest.mark.parametrize("region", REGIONS)
def test_telephone_numbers_of_every_country(region: str) -> None:
    for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE):
        number = phonenumbers.example_number_for_type(region, kind)
        abroad = phonenumbers.format_number(number, PhoneNumberFormat.INTERNATIONAL)
        home = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
        for text, value in [(f"photo, {abroad}, shop", abroad), (f"{WORDS.get(region, 'Tel.')} {home} x", home)]:
            found = [text[item.start : item.end] for item in find_personal_data(text) if item.kind == "phone"]
            assert [item.strip("()") for item in found] == [value.strip("()")] or found == [value], text


def test_nothing_is_found_in_captions_without_personal_data() -> None:
    assert [(text, find_personal_data(text)) for text in CASES["none"] if find_personal_data(text)] == []
    generator = np.random.default_rng(0)
    scenes = [text for number in range(40) for text in captions(make_scene("train", 0, number), generator).values()]
    assert len(scenes) > 900 and not [text for text in scenes if find_personal_data(text, shaped=True)]


def test_findings_that_only_have_the_form_are_marked() -> None:
    text = "stock photo 44051401359, iban DE89 3704 0044 0532 0130 01, x@example.notatld"
    found = {item.kind: item for item in find_personal_data(text, shaped=True)}
    assert set(found) == {"national_id", "iban", "email"} and not any(item.validated for item in found.values())
    assert PersonalDataRule(shaped=True).clean(text)[0] == "stock photo <national_id>, iban <iban>, <email>"
    assert PersonalDataRule().clean(text) == (text, [])


def test_each_kind_has_its_action() -> None:
    text = "anna@example.de, tel. 030 901820, by @anna_b"
    assert PersonalDataRule().clean(text)[0] == "<email>, tel. <phone>, by <handle>"
    rule = PersonalDataRule({"handle": "keep", "phone": "drop"})
    cleaned, found = rule.clean(text)
    assert cleaned == "<email>, tel. <phone>, by @anna_b" and [item.kind for item in found] == ["email", "phone"]
    dropping = rule.dropping(found)
    assert dropping and dropping.kind == "phone" and rule.dropping(found[:1]) is None
    for wrong in ({"phone": "burn"}, {"shoe size": "drop"}):
        with pytest.raises(UserError, match="KIND=ACTION"):
            PersonalDataRule(wrong)


def test_details_reveal_no_personal_data() -> None:
    for kind in KINDS:
        for texts in CASES[kind].values():
            for text, wanted in map(labelled, texts):
                for item in find_personal_data(text, shaped=True):
                    assert not any(value in item.detail for value in wanted)


HOSTILE = [
    "@", "a@", "a.", "1 ", "1-", "0", "A1", "::1", "http://a", "x@a.", "AA00 ", "(0", "tel ", "12/", "www.", "[at]",
]  # fmt: skip
HOSTILE += [
    "\u0661", "1.1.", "4111 ", "a/~", "IBAN DE89 ", "+49 30 ", "Tel. 0301", "NIF 123456789 ", "ABCDEF85T",
    "1234567 ",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_captions_take_little_time(text: str) -> None:
    text = (text * 5000)[:5000]  # the longest that screen_links lets through
    find_personal_data(text)
    begin = time.process_time()
    find_personal_data(text)
    assert time.process_time() - begin < 1.5


def test_only_the_first_characters_are_searched() -> None:
    assert find_personal_data("x" * (MAX_CHARACTERS - 4) + " anna@example.de") == []
