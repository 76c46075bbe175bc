import random
import re
from typing import Any

import pytest
import yaml

from leam_mm.data import personal_numbers
from leam_mm.data.personal_numbers import TABLE, find_numbers

TABLED: dict[str, Any] = yaml.safe_load(TABLE.read_text("utf-8"))


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (personal_numbers.hungarian_tax, "8071592153"),
        (personal_numbers.hungarian_insurance, "111111110"),
        (personal_numbers.hungarian_business, "12892312-2-42"),
        (personal_numbers.luxembourgish, "1893120105732"),
        (personal_numbers.german_pension, "15070649C103"),
    ],
)
def test_own_checksums_detect_single_wrong_digits(check: Any, right: str) -> None:
    assert check(right)
    checked = len(right) if check is not personal_numbers.hungarian_business else 8
    wrong = [right[:index] + str((int(right[index]) + 1) % 10) + right[index + 1 :]
             for index in range(checked) if right[index].isdigit()]  # fmt: skip
    assert sum(map(check, wrong)) <= 1  # one weight of the German number does not detect some changes


def test_every_row_of_the_table_is_a_check_and_a_form() -> None:
    entries = personal_numbers._entries()
    assert len(entries) == len(TABLED["national_id"]) + len(TABLED["tax_id"]) >= 40
    countries = {entry.name.partition(".")[0] for entry in entries}
    assert {"at", "be", "bg", "cz", "de", "dk", "ee", "es", "fi", "fr", "gr", "hr", "ie", "it", "lt", "lv"} <= countries
    assert all(entry.kind in ("national_id", "tax_id") for entry in entries)


def test_random_numbers_are_rarely_validated() -> None:
    chance = random.Random(0)
    forms = ["#########", "##########", "###########", "#############", "######-####", "######/####", "## ### ### ###"]
    forms += ["#### #### ####", "###-###-####", "######-#####", "@@#########", "@@ ### ### ###", "#### #### #### ####"]
    texts = [
        re.sub("@", lambda _: chance.choice("ABCDEFILMNPRST"), re.sub("#", lambda _: str(chance.randrange(10)), form))
        for form in forms
        for _ in range(400)
    ]
    taken = [text for text in texts if any(found.validated for found in find_numbers(f"article {text}, blue"))]
    assert len(taken) / len(texts) < 0.01, taken[:20]


def test_a_word_beside_a_number_identifies_it() -> None:
    assert not list(find_numbers("article 44051401359"))
    for text in ("PESEL 44051401359", "44051401359 (pesel)", "Pesel: 44051401359"):
        assert [found.detail for found in find_numbers(text)] == ["pl.pesel"]
    assert not list(find_numbers("PESEL " + "x" * 60 + " 44051401359"))
    assert not list(find_numbers("PESEL 44051401358"))
    wrong = list(find_numbers("PESEL 44051401358", shaped=True))
    assert [found.detail for found in wrong if not found.validated] == ["pl.pesel, checksum wrong"]


def test_words_after_a_number_are_not_its_groups() -> None:
    for text in (
        "IBAN DE89 3704 0044 0532 0130 00 Bank",
        "IBAN DE89370400440532013000 BANK AG",
        "DE89 3704 0044 0532 0130 00",
    ):
        found = next(find_numbers(text))
        assert found.kind == "iban" and re.sub(" ", "", text[found.start : found.end]) == "DE89370400440532013000"
