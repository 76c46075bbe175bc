"""The public summary of training content of a release (Art. 53(1)(d), Regulation (EU) 2024/1689).

All sections of the Commission's template of 24 July 2025, C(2025) 8311. Sections on data are those of
``training_summary.py``.
"""

from collections.abc import Mapping
from typing import Any

from leam_mm.documents.document_text import NOT_APPLICABLE, NOT_MEASURED, NOT_STATED, Open, open_fields, render, stated
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.training_content import empty_tally
from leam_mm.documents.training_summary import PROVIDER, training_summary
from leam_mm.documents.words import language_name
from leam_mm.languages import LANGUAGE_NAMES

# Fields of release.yaml behind the provider's part of training_summary.py, by section and name.
FIELDS: dict[str, dict[str, str]] = {
    "general": {
        "continuous_acquisition": "continuous_acquisition",
        "latest_acquisition": "latest_data_acquisition",
        "other_characteristics": "data_characteristics",
        "comments": "data_comments",
    },
    "licensed": {"comments": "licensed_data_comments"},
    "other_third_party": {"publicly_known": "third_party_data_sets", "description": "third_party_data_description"},
    "crawled": {
        "crawler_names": "crawler_names",
        "purposes": "crawl_purposes",
        "behaviour": "crawl_behaviour",
        "content_description": "crawl_content",
    },
    "user_data": {
        "from_model_interactions": "user_data_from_model",
        "from_other_services": "user_data_from_services",
        "services_description": "user_data_services",
        "modalities": "user_data_modalities",
    },
    "synthetic": {"models_on_market": "synthetic_models", "other_models": "synthetic_own_models"},
    "other_sources": {"description": "other_sources"},
    "rights": {
        "code_of_practice_signatory": "code_of_practice_signatory",
        "measures": "rights_measures",
        "policy": "copyright_policy",
    },
    "illegal_content": {"measures": "illegal_content_measures"},
}
# Without a count, these entries are not measured; all others are the provider's words.
COUNTED = (
    *("present", "size_range", "counted", "captions_by_language", "eu_languages", "eu_languages_missing"),
    *("machine_translated", "used", "samples", "modalities", "period_of_collection", "domains_counted"),
    *("machine_translated_captions", "evidence_kept", "links_dropped_by_rule", "legal_bases"),
    *("samples_dropped_by_rule", "withdrawn", "duplicates_removed", "personal_data_dropped_by_rule"),
)
OPTIONAL = ("comments", "additional_comments", "other")
EMPTY: dict[str, Any] = {  # statistics of no sample
    **{name: 0 for name in ("samples", "captions", "words", "text_bytes", "image_bytes", "duplicates_removed")},
    **{name: {} for name in ("months", "crawl_months", "languages", "machine_translated", "crawler", "consent")},
    **{name: {} for name in ("legal_basis", "licence")},
    **{name: [] for name in ("data_sets", "stages")},
    "domain_bytes": "fetched",
    "accounting": {"withdrawn": 0},
}


def answer(publisher: PublisherFields, name: str, language: str) -> Any:
    """Return a field of release.yaml in a language, or ``Open`` with its name."""
    value = getattr(publisher, name)
    if value is None or isinstance(value, bool | int | float):
        return stated(value, name)
    return stated(publisher.text(name, language), name)


def provider_part(publisher: PublisherFields, language: str) -> dict[str, Any]:
    """Return what the publisher states, in the form of the provider's file of ``training_summary.py``."""
    found: dict[str, Any] = {
        section: {name: answer(publisher, field, language) for name, field in names.items()}
        for section, names in FIELDS.items()
    }
    for name in ("from_model_interactions", "from_other_services"):
        if publisher.user_data_used is False:
            found["user_data"][name] = False
    if publisher.user_data_used is False:
        found["user_data"] |= {"services_description": NOT_APPLICABLE, "modalities": NOT_APPLICABLE}
    if isinstance(found["rights"]["policy"], Open):
        found["rights"]["policy"] = "copyright_policy.md"
    latest = publisher.latest_data_acquisition
    if latest:  # YYYY-MM; the template writes MM/YYYY
        found["general"]["latest_acquisition"] = f"{latest[5:7]}/{latest[:4]}"
    found["general"]["types_of_content"] = {
        name: answer(publisher, f"types_of_{name}_content", language) for name in ("text", "image")
    }
    found["public_data_sets"] = [
        {"name": folder, "link": link, "folder": folder} for folder, link in (publisher.public_data_sets or {}).items()
    ]
    found["small_enterprise"] = publisher.small_enterprise
    assert found.keys() <= PROVIDER.keys()
    return found


def summary_view(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> dict[str, Any]:
    """Return everything that the template shows."""
    provider = provider_part(publisher, language)
    if facts.content is None:
        from_data = _unmeasured(training_summary(EMPTY, empty_tally(), provider))
    else:
        from_data = training_summary(dict(facts.content.statistics), facts.content.tally, provider)
    spoken = from_data["1.3"]["linguistic_characteristics"]
    for name in ("captions_by_language", "eu_languages_missing"):
        spoken[name] = named_languages(spoken[name], language)
    counted = set(facts.content.merkle_roots if facts.content else ())
    uncounted = [
        {"name": name, "merkle_root": root} for root, name in sorted(trained_on(facts).items()) if root not in counted
    ]
    from_data = {name: _with_optional(_section(_settled(entry), bool(uncounted))) for name, entry in from_data.items()}
    return {
        "name": facts.name,
        "header": {
            "version": answer(publisher, "version", language),
            "last_update": stated(publisher.release_date, "release_date"),
            "previous_versions": answer(publisher, "previous_versions", language),
        },
        "provider": {
            "name": answer(publisher, "provider_name", language),
            "address": answer(publisher, "address", language),
            "contact": answer(publisher, "contact_email", language),
            "representative": answer(publisher, "authorised_representative", language),
        },
        "model": {
            "name": " ".join([facts.name, *([publisher.version] if publisher.version else [])]),
            "link": answer(publisher, "homepage", language),
            "placed": stated(publisher.eu_placement_date, "eu_placement_date"),
            "dependencies": dependencies(facts, publisher),
        },
        "uncounted": uncounted,
        "s": from_data,
    }


def public_summary(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the public summary as Markdown.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: en or de.
    """
    return render("public_summary", language, **summary_view(facts, publisher, language))


def summary_gaps(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> list[Open]:
    """Return what is missing in the summary."""
    return open_fields(summary_view(facts, publisher, language))


def _base_name(base: Mapping[str, str]) -> str:
    return base.get("name") or base.get("weights") or ""


def named_languages(found: Any, language: str) -> Any:
    """Return a mapping from or a list of language codes with the names of the official EU languages."""

    def name(code: str) -> str:
        return language_name(code, language) if code in LANGUAGE_NAMES else code

    if isinstance(found, Mapping):
        return {name(code): count for code, count in found.items()}
    return [name(code) for code in found] if isinstance(found, list) else found


def dependencies(facts: ReleaseFacts, publisher: PublisherFields) -> list[dict[str, Any]]:
    """Return the weights that parts of the release started from, or were taken over from."""
    summaries = publisher.base_summaries or {}
    return [
        {
            "part": stage.kind,
            "name": stated(_base_name(stage.base)),
            "sha256": stage.base.get("sha256"),
            "licence": stated(stage.base.get("licence")),
            "summary": stated(summaries.get(_base_name(stage.base)), "base_summaries"),
        }
        for stage in facts.stages
        if stage.base
    ]


def trained_on(facts: ReleaseFacts) -> dict[str, str]:
    """Return Merkle root to name of each shard folder of images that a run read, directly or as latents."""
    found: dict[str, str] = {}
    for stage in facts.stages:
        for root, name in stage.data.items():
            behind = stage.sources.get(root) or [root]
            found |= {one: found.get(one, name) for one in behind}
    return found


def _unmeasured(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary of nothing with ``NOT_MEASURED`` where something would have been counted."""
    return {
        name: NOT_MEASURED if name in COUNTED else _unmeasured(value) if isinstance(value, dict) else value
        for name, value in summary.items()
    }


def _section(section: Any, incomplete: bool) -> Any:
    """Return a section of a source in which questions do not arise if the source was not used.

    Args:
        section: Entries by name.
        incomplete: Whether some data were not counted, so that nobody knows that a source was not used.
    """
    if not isinstance(section, dict) or section.get("used") != "no":
        return section
    if incomplete:
        return section | {"used": NOT_MEASURED}
    return {name: NOT_APPLICABLE if isinstance(value, Open) else value for name, value in section.items()}


def _settled(value: Any) -> Any:
    """Return a summary whose texts "not stated" are ``Open``."""
    if isinstance(value, dict):
        return {name: _settled(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_settled(each) for each in value]
    return Open() if value == NOT_STATED else value


def _with_optional(section: Any) -> Any:
    """Return a section whose remarks, which the template does not require, are "none" where nobody made one."""
    if not isinstance(section, dict):
        return section
    return {name: "none" if name in OPTIONAL and isinstance(value, Open) else value for name, value in section.items()}
