"""Each field of the Commission's template and of the Model Documentation Form has a place, filled or open."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toys.published import write_published
from toys.releases import counted_content, publisher_fields, release_facts

from leam_mm.documents.acceptable_use import acceptable_use_policy
from leam_mm.documents.copyright_policy import PROTOCOLS, copyright_policy, evidence_of
from leam_mm.documents.dataset_statistics import DomainCount
from leam_mm.documents.document_index import document_index
from leam_mm.documents.documentation_form import approximate, documentation_form, size_range, time_range
from leam_mm.documents.public_summary import public_summary
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.training_content import count_training_content
from leam_mm.errors import UserError

SUMMARY = (
    *("Version of this summary", "Last update", "Previous versions", "Name", "Contact", "Authorised representative"),
    *("Versioned model name", "Link to the model", "Placed on the Union market", "Models that this one depends on"),
    *("| text |", "| image |", "| audio |", "| video |", "| other |", "Types of content", "Size"),
    *("Latest date of data acquisition", "Data acquisition continues", "Languages", "Official languages of the Union"),
    *("Other relevant characteristics", "Large datasets", "Other publicly available datasets, described"),
    *("Licensed by rightsholders", "Obtained from other third parties", "Publicly known datasets"),
    *("Datasets that are not publicly known", "Names of the crawlers", "Purposes of the crawlers"),
    *("Behaviour of the crawlers", "Period of collection", "Content that was crawled", "| Domain |"),
    *("Data from interactions of users", "Data from users of other services", "Description of these services"),
    *("General-purpose AI models on the market that generated", "Other models that generated data"),
    *("## 2.6", "Signatory of the General-Purpose AI Code of Practice", "Measures before and during data collection"),
    *("Copyright policy", "## 3.2", "## 3.3", "Other information"),
)  # fmt: skip
FORM = (
    *("Date of this document", "Version of this document", "Legal name", "Name of the model", "Model authenticity"),
    *("Release date", "Union market release date", "Model dependencies", "Model architecture"),
    *("Design specifications of the model", "Input modalities", "Output modalities", "Total model size, parameters"),
    *("Total model size, range", "Distribution channels and level of access", "**Distribution channels**"),
    *("**Licence**", "Link to the licence", "Category of the licence", "Additional assets", "Acceptable use policy"),
    "Intended uses",
    *("Restricted or prohibited uses", "Type and nature of AI systems", "Technical means for integration"),
    *("Required hardware", "Required software", "Design specifications of the training process", "Decision rationale"),
    *("Type and modality of the data", "Provenance of the data", "How the data were obtained", "Number of data points"),
    *("Number of data points, approximate", "Scope and main characteristics", "Data curation methodologies"),
    *("Measures to detect unsuitable data", "Measures to detect identifiable biases", "Training time, wall-clock"),
    *("Training time, hardware days", "Training time, range", "Amount of computation, FLOP", "order of magnitude"),
    *("Measurement methodology", "Energy used for training, MWh", "Benchmarked computation of inference"),
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fields") / "shards"


def test_each_field_of_the_summary_has_a_place(shards: Path) -> None:
    empty = public_summary(release_facts(None), PublisherFields(), "en")
    assert not [name for name in SUMMARY if name not in empty]
    assert empty.count("*open") > 15 and "*not measured*" in empty
    assert "| image | *not measured* | *not measured* |" in empty and ": 0\n" not in empty
    full = public_summary(release_facts(counted_content(shards)), publisher_fields(), "en")
    assert not [name for name in SUMMARY if name not in full]
    assert "captions in each:** English: 23" in full
    german = public_summary(release_facts(counted_content(shards.with_name("again"))), publisher_fields(), "de")
    assert "Bildunterschriften:** Englisch: 23" in german and "Fehlende Amtssprachen der Union:** Bulgarisch" in german
    assert "<1 million images" in full.replace("&lt;", "<") and "A lake office" in full and "org/vae" in full


def test_a_data_set_that_was_not_counted_is_named(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    facts = release_facts(content)
    assert "were not counted" not in public_summary(facts, publisher_fields(), "en")
    facts.stages[0].data["ee" * 32] = "others"
    text = public_summary(facts, publisher_fields(), "en")
    assert "were not counted" in text and "others" in text
    assert "- **Used:** no\n" not in text  # nobody knows what the others hold


def section(text: str, number: str) -> str:
    """The lines of a section of the summary."""
    return text.partition(f"# {number} ")[2].partition("\n#")[0]


def test_a_crawl_stays_a_crawl_when_its_data_are_published(tmp_path: Path) -> None:
    facts, publisher = release_facts(counted_content(tmp_path / "shards")), publisher_fields()
    assert publisher.data_sets
    crawled = section(public_summary(facts, publisher, "en"), "2.3")
    assert "**Used:** yes" in crawled and "**Samples:** 23" in crawled and "**Domains in total:** 5" in crawled
    assert crawled.count(".example |") == 1  # 10 % of five domains
    foreign = replace(publisher, public_data_sets={"shards": "https://others.example"})
    text = public_summary(facts, foreign, "en")
    assert "**Samples:** 23" in section(text, "2.1") and "| shards | https://others.example |" in section(text, "2.1")
    assert "**Used:** no" in section(text, "2.3") and "robots.txt, captchas, paywalls):** not applicable" in text


def test_small_enterprises_list_fewer_domains(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    for number in range(200):
        content.tally.crawled["shards"][f"more{number}.example"] = DomainCount(1, 1)
    for small, count in ((None, 21), (False, 21), (True, 11)):
        text = public_summary(release_facts(content), replace(publisher_fields(), small_enterprise=small), "en")
        assert section(text, "2.3").count(".example |") == count


def test_what_was_dropped_is_unknown_without_a_ledger(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    line = "dropped because of a reservation (rule: links):** "
    assert f"{line}none" in public_summary(release_facts(content), publisher_fields(), "en")
    (tmp_path / "shards/ledger.parquet").unlink()
    without = count_training_content([tmp_path / "shards"])
    text = public_summary(release_facts(without), publisher_fields(), "en")
    assert f"{line}*not measured*" in text and "withdrawn after publication:** *not measured*" in text


def test_latents_are_not_counted_beside_their_source(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    latents = write_published(tmp_path / "latents" / "8x8", 7)
    (tmp_path / "latents/encoding.json").write_text(json.dumps({"shards": content.merkle_roots[0]}))
    both = count_training_content([tmp_path / "shards", latents])
    assert both is not None and both.statistics["samples"] == 23
    alone = count_training_content([latents])
    assert alone is not None and alone.statistics["samples"] == 7
    (tmp_path / "latents/encoding.json").write_text("{")
    with pytest.raises(UserError, match="encoding"):
        count_training_content([latents])


def test_each_item_of_the_form_has_a_place(shards: Path) -> None:
    text = documentation_form(release_facts(None), PublisherFields(), "en")
    assert not [name for name in FORM if name not in text]
    assert "[AIO]: 8,943,209" in text and "[NCA, DP]: 1-500M" in text
    lines = [line for line in text.splitlines() if line.startswith("- **")]
    assert all("[AIO" in line or "[NCA" in line or "[DP]" in line for line in lines)
    assert "Energy used for training, MWh** [AIO, NCA]: *not measured*" in text  # one part was not


def test_ranges_are_those_of_the_form() -> None:
    assert [size_range(int(n)) for n in (1e5, 1e6, 4e8, 5e8, 2e10, 2e12)] == [
        *("<1M", "1-500M", "1-500M", "500M-5B", "15B-50B", ">1T")
    ]
    assert [time_range(days * 86400.0) for days in (1, 31, 100, 200)] == [
        *("less than 1 month", "1-3 months", "3-6 months", "more than 6 months")
    ]
    assert [approximate(n) for n in (0, 7, 12345, 95)] == [0, 7, 10000, 100]  # 95 is nearer to 100


def test_a_protocol_counts_only_where_the_records_show_it(tmp_path: Path) -> None:
    consent = {"origin: robots.txt": 20, "origin: robots.txt:content-signal": 3, "file: c2pa": 2, "response": 23}
    found = {protocol.name: evidence_of(protocol, consent) for protocol in PROTOCOLS}
    assert found["robots.txt"] == 20 and found["Content-Signal"] == 3
    assert [name for name, count in found.items() if count] == [
        *("robots.txt", "Content-Signal", "C2PA and CAWG training and data mining")
    ]
    text = copyright_policy(release_facts(counted_content(tmp_path / "shards")), publisher_fields(), "en")
    assert "| robots.txt | RFC 9309 | 0 |" in text and "| public domain | 23 |" in text
    unknown = copyright_policy(release_facts(None), PublisherFields(), "en")
    assert "| robots.txt | RFC 9309 | *not measured* |" in unknown and "`complaint_address`" in unknown


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_use_policy_forbids_what_the_law_forbids(language: str) -> None:
    text = acceptable_use_policy(release_facts(None), publisher_fields(), language)
    for word in ("2011/93", "2024/1385", "2026", "50(2)" if language == "en" else "Artikel 50 Absatz 2"):
        assert word in text
    letters = [f"5(1)({letter})" if language == "en" else f"Absatz 1 Buchstabe {letter})" for letter in "abcdefgh"]
    assert not [letter for letter in letters if letter not in text]
    assert ("not legal advice" if language == "en" else "keine Rechtsberatung") in text
    encoder = acceptable_use_policy(release_facts(None, generated_size=None), publisher_fields(), language)
    assert len(encoder) < len(text)


def test_the_index_names_open_fields_and_documents() -> None:
    text = document_index(release_facts(None), PublisherFields(), "en")
    for name in ("public_summary.md", "model_documentation_form.md", "copyright_policy.md", "../ml_bom.cdx.json"):
        assert f"]({name})" in text
    assert "- `provider_name`" in text and "reaches no class" in text and "croissant.json" not in text
    fewer = document_index(release_facts(None), publisher_fields(), "en")
    assert "- `provider_name`" not in fewer and fewer.count("- `") < text.count("- `")
