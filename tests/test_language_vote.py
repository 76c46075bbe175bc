import pytest

from data_tools.language_vote import Vote, primary_language, vote


def languages(*texts: str, page: str | None = None) -> list[str]:
    return [found.language for found in vote(list(texts), [page] * len(texts))]


def test_two_words_suffice_where_letters_or_words_tell() -> None:
    texts = {
        "bg": "червен кръг",
        "cs": "modrá hvězda",
        "de": "kleiner roter Kreis",
        "el": "κόκκινος κύκλος",
        "et": "punane ring",
        "fi": "punainen ympyrä",
        "lt": "raudonas apskritimas",
        "lv": "sarkans aplis",
        "mk": "црвен круг",
        "mt": "ċirku aħmar",
        "pt": "círculo vermelho",
        "sk": "modrá hviezda",
        "uk": "червоний круг",
    }
    assert languages(*texts.values()) == list(texts)


def test_nothing_is_said_where_nothing_can_be_told() -> None:
    for text in ("", "   ", "IMG_2034.jpg", "2034", "https://example.org/der/die/das.png", "!!! …", "logo", "\ud800"):
        assert vote([text])[0].language == "und", text


@pytest.mark.parametrize(
    ("tag", "code"),
    [("pt-BR", "pt"), ("sr_Latn", "sr"), ("NO", "nb"), ("und", None), ("", None), (None, None), ("german", None)],
)
def test_tags_of_pages(tag: str | None, code: str | None) -> None:
    assert primary_language(tag) == code


def test_answers_do_not_depend_on_company() -> None:
    texts = ["ein roter Kreis", "cercle rouge", "logo"]
    together = vote(texts)
    assert together == [vote([text])[0] for text in texts] == vote(texts)
    assert all(isinstance(found, Vote) and 0 <= found.confidence <= 1 for found in together)
