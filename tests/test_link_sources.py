from pathlib import Path

import pytest

from data_tools.links.link_sources import LinkSources, Standing
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError

SOURCES = """
default: art3_research
sources:
  - {domain: "bad.museum.example", basis: art4_general}
  - {domain: "*.museum.example", basis: public_domain, licence: CC0-1.0}
  - {domain: "bücher.example", source: shop, basis: consent}
  - {source: archive, basis: licensed, licence: contract 7}
"""


def test_the_first_matching_entry_decides(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(SOURCES, "utf-8")
    sources = LinkSources(path)
    basis = {
        ("img.museum.example", None, "licensed"): "public_domain",
        ("bad.museum.example", None, None): "art4_general",
        ("museum.example", None, None): "art3_research",
        ("xn--bcher-kva.example", "shop", None): "consent",
        ("xn--bcher-kva.example", "other", None): "art3_research",
        ("a.example", "archive", None): "licensed",
        ("a.example", None, "synthetic"): "art3_research",
        ("a.example", None, "synthetic", True): "synthetic",
        ("a.example", None, "art4_general"): "art4_general",
        ("a.museum.example.evil.example", None, None): "art3_research",
    }
    assert {key: sources.standing(*key).basis.value for key in basis} == basis
    assert sources.standing("img.museum.example", None, None).licence == "CC0-1.0"
    assert "entry 4" in sources.standing("a.example", "archive", None).said_by


def test_without_a_file_article_4_holds() -> None:
    assert LinkSources().standing("a.example", None, " ") == Standing(LegalBasis.art4_general, None, "default")
    with pytest.raises(UserError, match="'fair_use'"):
        LinkSources().standing("a.example", None, "fair_use")


def test_tables_are_trusted_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text("trust_tables: [own.parquet, runs/*/train.parquet]")
    sources = LinkSources(path)
    trusted = ("own.parquet", "elsewhere/own.parquet", "runs/a/train.parquet")
    assert all(sources.trusts(Path(name)) for name in trusted)
    assert not any(sources.trusts(Path(name)) for name in ("links.parquet", "own.parquet.csv", "train.parquet"))
    assert not LinkSources().trusts(Path("own.parquet"))


@pytest.mark.parametrize(
    "text",
    [
        "sources: [{domain: a.example}]",
        "sources: [{domain: a.example, basis: fair_use}]",
        "sources: [{basis: licensed}]",
        "sources: [{domain: a.example, basis: licensed, extra: 1}]",
        "sources: [{domain: 'no domain', basis: licensed}]",
        "sources: [{domain: 5, basis: licensed}]",
        "sources: {a: b}",
        "other: 1",
        "trust_tables: own.parquet",
        "trust_tables: [7]",
        "default: 7",
        "[1",
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_wrong_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"sources\.yaml"):
        LinkSources(path)
