"""The data half of the AI Act's public summary of training content (Art. 53(1)(d), Regulation (EU) 2024/1689).

Template of the European AI Office of 24 July 2025, C(2025) 8311: sections 1.3, 2.1 to 2.6 and 3.1 to 3.3. Counts are
filled in; what no ledger can know comes from the provider (a YAML of these names) and is ``not stated`` otherwise. The
source of a sample follows from its legal basis and from whether it was fetched from a domain; a shard folder that the
provider names as a public data set belongs to that data set.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from leam_mm.documents.dataset_statistics import DomainCount, Tally
from leam_mm.documents.document_text import NOT_STATED, render
from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGE_NAMES

TEXT_BANDS = ((10**9, "<1 billion tokens"), (10**13, "1 billion to 10 trillion tokens"), (None, ">10 trillion tokens"))
IMAGE_BANDS = ((10**6, "<1 million images"), (10**9, "1 million to 1 billion images"), (None, ">1 billion images"))
# Parts of the names of rules by which links and samples were dropped, for the sections that ask for measures.
RESERVATIONS = (
    *("reserv", "robots", "tdm", "ai.txt", "trust.txt", "registry", "header:", "meta:", "c2pa"),
    *("page_rights", "file_rights"),
)
ILLEGAL = ("hash_lists", "nudity", "blocked_")
PERSONAL = ("personal_data", "faces")
LARGE = 0.03  # share of all public data sets above which one is named
EU = sorted(LANGUAGE_NAMES, key=LANGUAGE_NAMES.__getitem__)  # the template's order
PROVIDER: dict[str, tuple[str, ...] | None] = {
    "general": (
        *("types_of_content", "text_tokens", "latest_acquisition", "continuous_acquisition"),
        *("other_characteristics", "comments"),
    ),
    "public_data_sets": None,
    "other_public_data_sets": None,
    "public_data_comments": None,
    "licensed": ("comments",),
    "other_third_party": ("publicly_known", "description", "comments"),
    "crawled": ("crawler_names", "purposes", "behaviour", "content_description", "comments"),
    "user_data": ("from_model_interactions", "from_other_services", "services_description", "modalities", "comments"),
    "synthetic": ("models_on_market", "other_models", "comments"),
    "other_sources": ("description", "comments"),
    "rights": ("code_of_practice_signatory", "measures", "policy", "comments"),
    "illegal_content": ("measures",),
    "further": None,
    "small_enterprise": None,
    "dataset": (
        *("name", "description", "licence", "url", "creator", "date_published"),
        *("version", "citation", "keywords"),
    ),
    "responsible": None,
}


def check_provider(provider: Any, where: str) -> dict[str, Any]:
    """Return the content of the provider's file.

    Args:
        provider: Parsed YAML.
        where: Its name, for messages.

    Raises:
        UserError: It is not a mapping, or has an unknown name, which would be ignored.
    """
    if provider is None:
        return {}
    if not isinstance(provider, dict):
        raise UserError(f"{where} is no mapping of sections: begin with lines such as 'crawled:'")
    for section, value in provider.items():
        if section not in PROVIDER:
            raise UserError(f"{where}: section {section!r} is not known; use one of {', '.join(PROVIDER)}")
        known = PROVIDER[section]
        if known is None:
            continue
        if not isinstance(value, dict):
            raise UserError(f"{where}: {section} is no mapping; it may hold {', '.join(known)}")
        for name in value:
            if name not in known:
                raise UserError(f"{where}: {section}.{name} is not known; use one of {', '.join(known)}")
    for entry in provider.get("public_data_sets") or []:
        if not isinstance(entry, dict) or not {"name", "link", "folder"} <= entry.keys():
            raise UserError(f"{where}: each of public_data_sets needs name, link and folder (of its shards)")
    return provider


def band(count: int, bands: tuple[tuple[int | None, str], ...]) -> str:
    """Return the template's words for a size."""
    return next(words for limit, words in bands if limit is None or count < limit)


def text_band(text_bytes: int, words: int, tokens: int | None) -> str:
    """Return the size of the text: from the provider's token count, else where bytes and words agree.

    A byte-level vocabulary has at most as many tokens as bytes, and at least as many as words.
    """
    if tokens is not None:
        return band(tokens, TEXT_BANDS)
    least, most = band(words, TEXT_BANDS), band(text_bytes, TEXT_BANDS)
    return most if least == most else NOT_STATED


def listed_domains(domains: dict[str, DomainCount], small: bool) -> list[dict[str, Any]]:
    """Return the largest domains by bytes: 10 %; for small enterprises 5 % or 1,000, whichever is less."""
    ordered = sorted(domains.items(), key=lambda item: (-item[1].bytes, item[0]))
    count = len(ordered)
    wanted = min(math.ceil(count / 20), 1000) if small else math.ceil(count / 10)
    return [{"domain": name, "samples": found.samples, "bytes": found.bytes} for name, found in ordered[:wanted]]


def crawled_domains(tally: Tally, public: Collection[str]) -> dict[str, DomainCount]:
    """Return the domains of crawled samples, over all folders that are no public data set."""
    found: dict[str, DomainCount] = {}
    for folder, domains in tally.crawled.items():
        for name, count in domains.items() if folder not in public else ():
            entry = found.setdefault(name, DomainCount())
            entry.samples += count.samples
            entry.bytes += count.bytes
    return found


def sources(tally: Tally, public: Collection[str]) -> dict[str, Counter[str]]:
    """Count the samples of each section of the template by shard folder."""
    found: dict[str, Counter[str]] = {name: Counter() for name in ("2.1", "2.2.1", "2.2.2", "2.3", "2.5", "2.6")}
    by_basis = {"synthetic": "2.5", "licensed": "2.2.1", "consent": "2.2.2"}
    for (folder, basis, origin), count in tally.sections.items():
        section = "2.1" if folder in public else by_basis.get(basis, "2.3" if origin == "web" else "2.6")
        found[section][folder] += count
    return found


def training_summary(statistics: dict[str, Any], tally: Tally, provider: dict[str, Any]) -> dict[str, Any]:
    """Fill the template.

    Args:
        statistics: The content of statistics.json.
        tally: The counts it was made from, with all domains.
        provider: What only the provider knows; see ``PROVIDER``.

    Returns:
        The content of training_summary.json: entries by number of their section.
    """

    def stated(section: str, name: str) -> Any:
        value = (provider.get(section) or {}).get(name)
        return NOT_STATED if value is None or value == "" else value

    public = {str(entry["folder"]): entry for entry in provider.get("public_data_sets") or []}
    by = sources(tally, public)
    domains = crawled_domains(tally, public)
    total, months, web = statistics["samples"], list(statistics["months"]), list(statistics["crawl_months"])
    small, languages = bool(provider.get("small_enterprise")), statistics["languages"]
    of_public = sum(by["2.1"].values())
    modalities = ["text", "image"]
    tokens = (provider.get("general") or {}).get("text_tokens")
    agents = [name for name in statistics["crawler"] if name != NOT_STATED]
    crawled = bool(by["2.3"])

    def used(section: str) -> dict[str, Any]:
        count = sum(by[section].values())
        return {"used": "yes" if count else "no", "samples": count, "modalities": modalities if count else []}

    return {
        "template": "AI Act, Art. 53(1)(d), C(2025) 8311; data sections",
        "data": [{"name": entry["name"], "merkle_root": entry["merkle_root"]} for entry in statistics["data_sets"]],
        "1.3": {
            "text": {
                "present": "yes" if statistics["captions"] else "no",
                "size_range": text_band(statistics["text_bytes"], statistics["words"], tokens),
                "counted": {"captions": statistics["captions"], "words": statistics["words"]},
                "types_of_content": _types(provider, "text"),
            },
            "image": {
                "present": "yes" if total else "no",
                "size_range": band(total, IMAGE_BANDS),
                "counted": {"images": total, "bytes": statistics["image_bytes"]},
                "types_of_content": _types(provider, "image"),
            },
            "audio": {"present": "no"},
            "video": {"present": "no"},
            "latest_date_of_data_acquisition": _month(months[-1])
            if months
            else stated("general", "latest_acquisition"),
            "continuous_acquisition": stated("general", "continuous_acquisition"),
            "linguistic_characteristics": {
                "captions_by_language": languages,
                "eu_languages": sum(code in languages for code in EU),
                "eu_languages_missing": [code for code in EU if code not in languages],
                "machine_translated": sum(statistics["machine_translated"].values()),
            },
            "other_relevant_characteristics": stated("general", "other_characteristics"),
            "additional_comments": stated("general", "comments"),
        },
        "2.1": used("2.1")
        | {
            "large_datasets": [
                {"name": entry["name"], "link": entry["link"], "part": entry.get("part", NOT_STATED)}
                | {"samples": by["2.1"][folder]}
                for folder, entry in public.items()
                if of_public and by["2.1"][folder] > LARGE * of_public
            ],
            "other_public_datasets": provider.get("other_public_data_sets") or NOT_STATED,
            "comments": provider.get("public_data_comments") or NOT_STATED,
        },
        "2.2.1": used("2.2.1") | {"comments": stated("licensed", "comments")},
        "2.2.2": used("2.2.2")
        | {
            "publicly_known_datasets": stated("other_third_party", "publicly_known"),
            "description": stated("other_third_party", "description"),
            "comments": stated("other_third_party", "comments"),
        },
        "2.3": used("2.3")
        | {
            "crawler_names": agents or stated("crawled", "crawler_names") if crawled else [],
            "purposes": stated("crawled", "purposes"),
            "behaviour": stated("crawled", "behaviour"),
            "period_of_collection": f"{_month(web[0])} to {_month(web[-1])}" if web and crawled else NOT_STATED,
            "content_description": stated("crawled", "content_description"),
            "domains_counted": len(domains),
            "domains_rule": "top 5 %, 1,000 at most (small enterprise)" if small else "top 10 %",
            "domains_by": f"bytes {statistics['domain_bytes']}",
            "domains": listed_domains(domains, small),
            "comments": stated("crawled", "comments"),
        },
        "2.4": {name: stated("user_data", name) for name in PROVIDER["user_data"] or ()},
        "2.5": used("2.5")
        | {
            "gpai_models_on_market": stated("synthetic", "models_on_market"),
            "other_models": stated("synthetic", "other_models"),
            "machine_translated_captions": sum(statistics["machine_translated"].values()),
            "comments": stated("synthetic", "comments"),
        },
        "2.6": used("2.6")
        | {"narrative": stated("other_sources", "description"), "comments": stated("other_sources", "comments")},
        "3.1": {
            "code_of_practice_signatory": stated("rights", "code_of_practice_signatory"),
            "measures": stated("rights", "measures"),
            "evidence_kept": statistics["consent"],
            "stages": [stage["stage"] for stage in statistics["stages"]],
            "links_dropped_by_rule": recorded_drops(statistics, *RESERVATIONS),
            "legal_bases": statistics["legal_basis"],
            "copyright_policy": stated("rights", "policy"),
            "comments": stated("rights", "comments"),
        },
        "3.2": {
            "measures": stated("illegal_content", "measures"),
            "samples_dropped_by_rule": recorded_drops(statistics, *ILLEGAL),
        },
        "3.3": {
            "other": provider.get("further") or NOT_STATED,
            "withdrawn": statistics["accounting"]["withdrawn"],
            "duplicates_removed": statistics["duplicates_removed"],
            "personal_data_dropped_by_rule": recorded_drops(statistics, *PERSONAL),
        },
    }


def _types(provider: dict[str, Any], modality: str) -> Any:
    types = (provider.get("general") or {}).get("types_of_content") or {}
    return (types.get(modality) if isinstance(types, dict) else types) or NOT_STATED


def _month(text: str) -> str:
    """Return YYYY-MM as the template writes it."""
    return f"{text[5:7]}/{text[:4]}"


def recorded_drops(statistics: Mapping[str, Any], *words: str) -> dict[str, int] | None:
    """Return ``dropped_by``; None without a ledger, where nobody knows what was dropped."""
    return dropped_by(statistics, *words) if statistics["stages"] else None


def dropped_by(statistics: Mapping[str, Any], *words: str) -> dict[str, int]:
    """Return the drops of all rules whose names contain one of the words, over all stages."""
    found: Counter[str] = Counter()
    for stage in statistics["stages"]:
        for rule, count in stage["dropped"].items():
            if any(word in rule for word in words):
                found[rule] += count
    return dict(found)


def summary_text(summary: dict[str, Any], language: str = "en") -> str:
    """Return the data sections as Markdown."""
    return render("training_data", language, s=summary)
