import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_tools.corpora.tokenizer_training import balanced_text, read_captions
from data_tools.train_tokenizer import main
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError

SENTENCES = {
    "bg": "Малко куче тича през зелената поляна.",
    "cs": "Žluťoučký kůň běží přes zelenou louku.",
    "da": "En lille hund løber over den grønne eng.",
    "de": "Ein großer Hund läuft über die grüne Wiese.",
    "el": "Ένας μικρός σκύλος τρέχει στο πράσινο λιβάδι.",
    "en": "A small dog runs across the green meadow.",
    "es": "Un niño pequeño corre por la pradera verde.",
    "et": "Väike koer jookseb üle rohelise niidu.",
    "fi": "Pieni koira juoksee vihreän niityn yli.",
    "fr": "Un petit chien court à travers le pré, où l'été dure.",
    "ga": "Ritheann madra beag trasna na móinéir ghlais.",
    "hr": "Mali pas trči preko zelene livade, čak i noću.",
    "hu": "Egy kis kutya fut át a zöld réten, őszintén.",
    "it": "Un piccolo cane corre nel prato verde, perché è felice.",
    "lt": "Mažas šuo bėga per žalią pievą.",
    "lv": "Mazs suns skrien pāri zaļai pļavai.",
    "mt": "Kelb żgħir jiġri fuq il-mergħa ħadra.",
    "nl": "Een kleine hond rent over de groene weide.",
    "pl": "Mały pies biegnie przez zieloną łąkę.",
    "pt": "Um cão pequeno corre pelo prado verde.",
    "ro": "Un câine mic aleargă peste pajiștea verde.",
    "sk": "Malý pes beží cez zelenú lúku, kôň tiež.",
    "sl": "Majhen pes teče čez zeleni travnik.",
    "sv": "En liten hund springer över den gröna ängen.",
}
LENGTH = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "shards"
    generator = np.random.default_rng(0)
    with ShardWriter(folder, 10) as writer:
        for number in range(30):
            captions = []
            for language, sentence in SENTENCES.items():
                words = sentence.split()
                text = " ".join(words[i] for i in generator.permutation(len(words)))
                captions.append({"text": text, "language": language, "source": "test", "machine_translated": False})
            writer.write(f"{number:05d}", {"json": json.dumps({"captions": captions}).encode()})
    return folder


@pytest.fixture(scope="module")
def tokenizer(shards: Path) -> Path:
    output = shards.parent / "tokenizer"
    main(["--shards", str(shards), "--output", str(output), "--vocabulary", "900", "--context-length", str(LENGTH)])
    return output


def test_both_libraries_give_the_same_ids(tokenizer: Path) -> None:
    from open_clip.tokenizer import HFTokenizer
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(str(tokenizer))
    theirs = HFTokenizer(str(tokenizer), context_length=LENGTH)
    texts = [*SENTENCES.values(), "", " ".join(SENTENCES.values()), "a <|end|> b"]
    ids = ours(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, theirs(texts).numpy())
    assert ids.shape == (len(texts), LENGTH)
    last = len(ours) - 1
    assert (ours.pad_token_id, ours.bos_token_id, ours.eos_token_id) == (0, last - 1, last)
    assert len(ours) == 900
    assert (ids[:, 0] == last - 1).all()
    for row in ids:
        end = int(row.argmax())
        assert row[end] == last and (row[end + 1 :] == 0).all() and (row[:end] != 0).all()
        assert (row == last).sum() == 1  # a caption that spells the end token does not end the text
    assert ids[-2, -1] == last  # cut texts keep their end


def test_text_survives_in_all_24_languages(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    assert len(SENTENCES) == 24
    for text in SENTENCES.values():
        for form in ("NFC", "NFD"):
            ids = loaded(unicodedata.normalize(form, text), truncation=False)["input_ids"]
            assert loaded.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFC", text).lower()


def test_our_own_tokenizer_reads_the_folder(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    from leam_mm.data.tokenizer import Tokenizer

    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    texts = list(SENTENCES.values())
    text, length = Tokenizer(tokenizer, LENGTH).encode(texts)
    expected = loaded(texts, padding="max_length", truncation=True, return_tensors="np")
    np.testing.assert_array_equal(np.asarray(text), expected["input_ids"])
    np.testing.assert_array_equal(np.asarray(length), expected["attention_mask"].sum(1))


def test_report_measures_every_language(tokenizer: Path) -> None:
    report = json.loads((tokenizer / "tokenizer_report.json").read_text())
    assert report["vocabulary"] == 900 and set(report["languages"]) == set(SENTENCES)
    assert report["languages"]["en"]["tokens_per_word_relative_to_english"] == 1
    assert all(1 <= values["tokens_per_word"] < 12 for values in report["languages"].values())
    assert not {"config.json", "open_clip_config.json"} & {path.name for path in tokenizer.iterdir()}


def test_training_is_deterministic(shards: Path, tokenizer: Path) -> None:
    again = shards.parent / "again"
    main(["--shards", str(shards), "--output", str(again), "--vocabulary", "900", "--context-length", str(LENGTH)])
    for path in tokenizer.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_small_text_gives_a_smaller_vocabulary_with_the_same_order(shards: Path, capsys: pytest.CaptureFixture) -> None:
    from transformers import AutoTokenizer

    output = shards.parent / "short"
    main(["--shards", str(shards), "--output", str(output), "--vocabulary", "9000", "--languages", "mt"])
    loaded = AutoTokenizer.from_pretrained(str(output))
    assert 259 < len(loaded) < 9000 and f"vocabulary {len(loaded)} (requested 9000" in capsys.readouterr().out
    assert loaded.eos_token_id == len(loaded) - 1 and loaded.bos_token_id == len(loaded) - 2


def test_temperature_balances_languages(shards: Path) -> None:
    captions = read_captions([shards], ["de", "en"])
    captions["de"] = type(captions["de"])(dict(list(captions["de"].items())[:3]))
    share = {}
    for temperature in (0.0, 1.0):
        text = list(balanced_text(captions, temperature, 20_000))
        german = sum(len(item) for item in text if item in captions["de"])
        share[temperature] = german / sum(map(len, text))
    assert abs(share[0.0] - 0.5) < 0.02
    natural = {name: sum(len(text) * n for text, n in counts.items()) for name, counts in captions.items()}
    assert abs(share[1.0] - natural["de"] / sum(natural.values())) < 0.02


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--vocabulary", "100"], "259"),
        (["--context-length", "2"], "at least 3"),
        (["--languages", "xx"], "xx"),
        (["--temperature", "2"], "at most 1"),
    ],
)
def test_errors_name_the_fix(shards: Path, tmp_path: Path, arguments: list[str], word: str) -> None:
    with pytest.raises(UserError, match=word):
        main(["--shards", str(shards), "--output", str(tmp_path / "out"), *arguments])
    assert not list(tmp_path.iterdir())
