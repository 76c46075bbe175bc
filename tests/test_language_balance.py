import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from toys.images import coloured_square

from leam_mm.data import language_balance
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.language_balance import LanguageBalance, count_languages
from leam_mm.data.pairs_module import PairCaptions, PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.sample_plan import SampleReader, Source
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError


def write(folder: Path, languages: list[list[str]]) -> Path:
    """One sample for each list, with a caption in each of its languages."""
    with ShardWriter(folder, 32) as writer:
        for number, names in enumerate(languages):
            record = {"captions": [{"text": f"{name} {number}", "language": name} for name in names]}
            writer.write(f"{number:06d}", {"png": coloured_square("red", 0, 8), "json": json.dumps(record).encode()})
    return folder


def shares(train: Path | list[Source], count: int, seed: int = 0, **settings: Any) -> dict[str, float]:
    """Drawn languages, as shares, without decoding a picture."""
    made = PairsModule(train, ImageDecoding(8), 32, captions=PairCaptions(**settings), loading=Loading(0), seed=seed)
    made.setup("fit")
    plan, drawn = made.train_plan, Counter[str]()
    assert plan is not None
    for index in range(count):
        stored = plan.read(index)
        drawn[made.decode(stored.key, stored.members, index)["language"][0]] += 1
    return {name: number / count for name, number in drawn.items()}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of 100 pictures has a caption in en; 25 of them one in mt too."""
    folder = tmp_path_factory.mktemp("several") / "shards"
    return write(folder, [["en", "mt"] if number % 4 == 0 else ["en"] for number in range(100)])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """160 captions in de in two folders, 10 in ga."""
    folder = tmp_path_factory.mktemp("sources")
    made = {"de_a": (120, "de"), "de_b": (40, "de"), "ga": (10, "ga")}
    return [
        Source(write(folder / name, [[language]] * count), language=language)
        for name, (count, language) in made.items()
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, math.inf])
def test_languages_of_a_sample_are_drawn_by_their_counts(several: Path, temperature: float) -> None:
    # mt can only be drawn where it is: a quarter of the pictures, there with 25^(1/T) against 100^(1/T).
    expected = 0.25 * 25 ** (1 / temperature) / (25 ** (1 / temperature) + 100 ** (1 / temperature))
    drawn = shares(several, 4000, language_balance=LanguageBalance(temperature))
    assert drawn["mt"] == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000))


@pytest.mark.parametrize("temperature", [1.0, 2.0, math.inf])
def test_sources_of_one_language_are_drawn_by_their_counts(sources: list[Source], temperature: float) -> None:
    german, irish = 160 ** (1 / temperature), 10 ** (1 / temperature)
    drawn = shares(sources, 1024, language_balance=LanguageBalance(temperature))
    assert drawn["ga"] == pytest.approx(irish / (german + irish), abs=2e-3)  # the mixture's shares are exact in blocks


def test_source_weights_are_in_closed_form(sources: list[Source]) -> None:
    balance = LanguageBalance(2.0)
    german, irish = 4 / 5, 1 / 5  # sqrt(160) : sqrt(10)
    assert balance.source_weights(sources, [120, 40, 10]) == pytest.approx(
        [3 * german * 0.75, 3 * german * 0.25, 3 * irish]
    )
    doubled = [Source("a", 2.0, "de"), Source("b", 1.0, "de"), Source("c", 1.0, "ga"), Source("d", 7.0)]
    weights = balance.source_weights(doubled, [80, 80, 10, 999])
    assert weights == pytest.approx([4 * german * 2 / 3, 4 * german / 3, 4 * irish, 7.0])
    given = LanguageBalance(1.0, {"de": 30, "ga": 10, "fr": 5})
    assert given.source_weights(sources, [120, 40, 10]) == pytest.approx([3 * 0.75 * 0.75, 3 * 0.75 * 0.25, 3 * 0.25])


def test_draws_are_a_function_of_seed_and_number(several: Path) -> None:
    settings = {"language_balance": LanguageBalance(3.0)}
    one, again, other = (shares(several, 300, seed=seed, **settings) for seed in (1, 1, 2))
    assert one == again and one != other


def test_given_weights_count_on_top(several: Path) -> None:
    balance = LanguageBalance(1.0, {"en": 100, "mt": 25})
    drawn = shares(several, 2000, language_balance=balance, language_weights={"mt": 4.0})
    assert drawn["mt"] == pytest.approx(0.125, abs=0.03)
    assert "mt" not in shares(several, 200, language_balance=balance, language_weights={"mt": 0.0})


def test_validation_stays_as_it_was(several: Path) -> None:
    made = PairsModule(
        several, ImageDecoding(8), 4, captions=PairCaptions(language_balance=LanguageBalance(3.0)), loading=Loading(0)
    )
    made.setup("fit")
    assert made.decode_validation.language_weights is None  # type: ignore[attr-defined]


def test_many_samples_are_counted_in_part_and_logged(
    several: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert count_languages(SampleReader(several)) == {"en": 100, "mt": 25}
    monkeypatch.setattr(language_balance, "COUNTED_SAMPLES", 40)
    with caplog.at_level(logging.INFO):
        estimated = count_languages(SampleReader(several))
    assert estimated["en"] == 100 and 5 < estimated["mt"] < 60
    assert "languages estimated from 3" in caplog.text and "of 100 samples" in caplog.text


@pytest.mark.parametrize(
    ("temperature", "counts"), [(0.0, None), (-1.0, None), (math.nan, None), (1.0, {"de": 0}), (1.0, {})]
)
def test_impossible_balance_is_refused(temperature: float, counts: dict[str, int] | None) -> None:
    with pytest.raises(UserError, match="language_balance"):
        LanguageBalance(temperature, counts)
