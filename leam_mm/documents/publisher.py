"""What only the publisher of a release knows: names, addresses, dates, intended uses, policies.

Every field may stay open. An open field is shown as such in the documents, never filled by a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date

DOCUMENT_LANGUAGES = ("en", "de")


@dataclass(frozen=True)
class Text:
    """A text of the publisher, in one language or in several.

    Args:
        paragraphs: Paragraphs or entries by language code; ``""`` stands for a text that names no language.
    """

    paragraphs: Mapping[str, Sequence[str]]

    def entries(self, language: str) -> list[str]:
        """Return the entries in a language; else those without a language, in English, or in the first one given."""
        for code in (language, "", "en"):
            if code in self.paragraphs:
                return list(self.paragraphs[code])
        return list(next(iter(self.paragraphs.values()), ()))

    def read(self, language: str) -> str:
        """Return the text in a language, as one paragraph."""
        return " ".join(self.entries(language))


def _about(section: str, why: str, example: str) -> dict[str, str]:
    """Return the section of a field, who asks for it, and an example of its value."""
    return {"section": section, "why": why, "example": example}


PROVIDER, RELEASE, USE = "Who publishes", "The release", "Use"
POLICIES, DATA, TRAINING = "Policies", "Training data", "Training"
OPENNESS = "Openness"
SUMMARY, FORM = "AI Act summary", "Model Documentation Form"


@dataclass(frozen=True)
class PublisherFields:
    """Fields of ``release.yaml``; None is an open field.

    Args:
        provider_name: Legal name of the provider.
        contact_email: E-mail address that answers questions about the model.
        address: Postal address of the provider.
        homepage: Web address of the provider or the model.
        authorised_representative: Name and contact; only for providers outside the Union.
        small_enterprise: Whether the provider is a small or medium enterprise.
        version: Version of the release.
        previous_versions: Earlier versions, with their addresses.
        release_date: Day of publication.
        eu_placement_date: Day on which the model is placed on the Union market.
        licence: SPDX identifier of the licence of the weights, or LicenseRef- and a name.
        licence_link: Address of the licence's text.
        distribution: Where the model is offered, one entry each.
        languages: Codes of the languages that the model is said to serve.
        citation_authors: Authors of the citation.
        citation_title: Title of the citation; the release's name if open.
        citation_url: Address of the paper or the release.
        thumbnail: Address of an image that the Hub shows.
        description: One paragraph about the model.
        intended_uses: Uses for which the model was made.
        out_of_scope_uses: Uses for which it is not meant.
        known_limits: Limits that no table measures.
        system_types: Kinds of AI systems into which it may be integrated.
        required_hardware: What is needed to run it.
        model_design: Key design decisions of the model, with reasons and assumptions.
        policy_contact: E-mail address for questions about acceptable use.
        acceptable_use_policy: Address of the policy; the release's own document if open.
        copyright_policy: Address of the policy; the release's own document if open.
        complaint_address: E-mail or web address for complaints of rightsholders.
        complaint_deadline: Time in which a complaint is answered.
        copyright_responsible: Who is responsible for the copyright policy.
        infringing_sites: How sites that are known for infringement are excluded.
        trained_models_answer: What is done about a trained model after a justified complaint.
        code_of_practice_signatory: Whether the provider signed the General-Purpose AI Code of Practice.
        rights_measures: Measures that respect reservations of rights.
        illegal_content_measures: Measures that remove illegal content.
        personal_data_measures: Measures about personal data.
        bias_measures: Measures that detect biases.
        audit_exceptions: Reason why the release is published although an audit failed or is missing, by its name.
        types_of_image_content: Kinds of images, such as photography or visual art.
        types_of_text_content: Kinds of texts.
        latest_data_acquisition: Month of the last acquisition, as YYYY-MM.
        data_characteristics: Other characteristics of the data, such as national or demographic ones.
        licensed_data_comments: Remarks on data licensed by rightsholders.
        third_party_data_sets: Publicly known data sets obtained from other third parties, with their addresses.
        third_party_data_description: Data of other third parties that are not publicly known.
        first_version_data_sets: Names of the data sets of the model's first version.
        base_summaries: Address of the public summary of each base model, by the name of the base.
        continuous_acquisition: Whether data are collected after that.
        data_description: How the data were obtained and selected.
        data_sets: Public address, or owner/name on the Hub, of each data set, by the name of its shard folder.
        public_data_sets: Address of each data set that others published, by the name of its shard folder.
        crawler_names: Names of the provider's crawlers.
        crawl_purposes: Purposes of the crawlers.
        crawl_content: What kind of content was crawled.
        crawl_behaviour: How the crawlers treat robots.txt, captchas and paywalls.
        user_data_used: Whether data of users were used for training.
        user_data_from_model: Whether data from interactions with the model were used.
        user_data_from_services: Whether data of users of other services were used.
        user_data_services: Services that these data come from.
        user_data_modalities: Modalities of these data.
        other_sources: Data from sources that no other field names.
        synthetic_models: Models that made synthetic data or captions, with version.
        synthetic_own_models: Other models and programs that made synthetic data, including the provider's own.
        data_comments: Anything else about the data.
        training_type: pre-training or fine-tuning.
        hardware_used: Devices of the training, with their number.
        geographical_location: Where the training ran.
        earlier_flops: FLOP that went into the model before the recorded runs: base models, synthetic data.
        training_design: Main steps and aims of the training.
        decision_rationale: Reasons of the main decisions.
        inference_flops: FLOP of one use, measured or computed, with its task.
        energy_supplier: Name of the organisation that supplies the energy.
        code_repository: Address of the code that trained and measured the model, under Apache-2.0.
        documents_licence: SPDX identifier of the licence of the documents; that of the weights if open.
        technical_report: Address of a technical report.
        research_paper: Address of a paper.
        evaluation_data: Address of the evaluation data, with its licence in parentheses.
        intermediate_checkpoints: Address of checkpoints of the training.
    """

    provider_name: str | None = field(
        default=None, metadata=_about(PROVIDER, f"{SUMMARY} 1.1, {FORM}, Art. 53 AI Act", "Example Research Foundation")
    )
    contact_email: str | None = field(
        default=None, metadata=_about(PROVIDER, f"model card, {SUMMARY} 1.1", "models@example.org")
    )
    address: str | None = field(
        default=None, metadata=_about(PROVIDER, f"{SUMMARY} 1.1", "1 Example Street, 10115 Berlin, Germany")
    )
    homepage: str | None = field(default=None, metadata=_about(PROVIDER, "model card, citation", "https://example.org"))
    authorised_representative: str | None = field(
        default=None,
        metadata=_about(
            PROVIDER, f"{SUMMARY} 1.1 (Art. 54 AI Act): providers outside the Union only", "Name, address, e-mail"
        ),
    )
    small_enterprise: bool | None = field(
        default=None,
        metadata=_about(
            PROVIDER, f"{SUMMARY} 2.3: number of domains to list; SME by Recommendation 2003/361/EC", "false"
        ),
    )
    version: str | None = field(default=None, metadata=_about(RELEASE, "all documents", "'1.0'"))
    previous_versions: tuple[str, ...] | None = field(
        default=None, metadata=_about(RELEASE, f"{SUMMARY} header", "['0.9: https://example.org/model/0.9']")
    )
    release_date: date | None = field(default=None, metadata=_about(RELEASE, f"model card, {FORM}", "2026-12-01"))
    eu_placement_date: date | None = field(
        default=None, metadata=_about(RELEASE, f"{SUMMARY} 1.2, {FORM}", "2026-12-01")
    )
    licence: str | None = field(
        default=None, metadata=_about(RELEASE, "model card, all documents; --licence says the same", "Apache-2.0")
    )
    licence_link: str | None = field(
        default=None, metadata=_about(RELEASE, "model card, for a licence without SPDX name", "https://example.org/l")
    )
    distribution: tuple[str, ...] | None = field(
        default=None, metadata=_about(RELEASE, f"{FORM}: channels", "['https://example.org/model']")
    )
    languages: tuple[str, ...] | None = field(
        default=None,
        metadata=_about(RELEASE, f"{SUMMARY} 1.3, model card; compared with the measured ones", "[de, en, fr]"),
    )
    citation_authors: tuple[str, ...] | None = field(
        default=None, metadata=_about(RELEASE, "model card", "['Ada Example', 'Emil Beispiel']")
    )
    citation_title: str | None = field(default=None, metadata=_about(RELEASE, "model card", "A multilingual encoder"))
    citation_url: str | None = field(default=None, metadata=_about(RELEASE, "model card", "https://example.org/paper"))
    thumbnail: str | None = field(
        default=None, metadata=_about(RELEASE, "metadata of the Hub", "https://example.org/thumbnail.png")
    )
    description: Text | None = field(
        default=None, metadata=_about(USE, "first paragraph of the model card", "{en: What it is., de: Was es ist.}")
    )
    intended_uses: Text | None = field(
        default=None,
        metadata=_about(USE, f"model card, {FORM}, Annex XI 1(a) AI Act", "{en: [Image search], de: [Bildersuche]}"),
    )
    out_of_scope_uses: Text | None = field(
        default=None, metadata=_about(USE, f"model card, {FORM}", "{en: [Medicine], de: [Medizin]}")
    )
    known_limits: Text | None = field(
        default=None, metadata=_about(USE, "model card", "{en: [Small objects are missed]}")
    )
    system_types: Text | None = field(
        default=None, metadata=_about(USE, f"{FORM}: type and nature of AI systems", "[Search engines]")
    )
    required_hardware: str | None = field(
        default=None, metadata=_about(USE, f"{FORM}, Annex XII 1(d) AI Act", "a CPU with 1 GB of memory")
    )
    model_design: Text | None = field(
        default=None, metadata=_about(USE, f"{FORM}: design specifications of the model", "{en: Design., de: Entwurf.}")
    )
    policy_contact: str | None = field(
        default=None, metadata=_about(POLICIES, "acceptable use policy", "policy@example.org")
    )
    acceptable_use_policy: str | None = field(
        default=None, metadata=_about(POLICIES, f"{FORM}; open: the release's own document", "https://e.org/a")
    )
    copyright_policy: str | None = field(
        default=None, metadata=_about(POLICIES, f"{SUMMARY} 3.1; open: the release's own document", "https://e.org/c")
    )
    complaint_address: str | None = field(
        default=None,
        metadata=_about(
            POLICIES, "copyright policy: Code of Practice, copyright chapter, measure 1.5", "rights@example.org"
        ),
    )
    complaint_deadline: Text | None = field(
        default=None, metadata=_about(POLICIES, "copyright policy", "{en: 30 days, de: 30 Tage}")
    )
    copyright_responsible: str | None = field(
        default=None,
        metadata=_about(
            POLICIES, "copyright policy: Code of Practice, copyright chapter, measure 1.1", "Legal department"
        ),
    )
    infringing_sites: Text | None = field(
        default=None,
        metadata=_about(
            POLICIES, "copyright policy: Code of Practice, copyright chapter, measure 1.2", "[Lists of the Commission]"
        ),
    )
    trained_models_answer: Text | None = field(
        default=None, metadata=_about(POLICIES, "copyright policy", "{en: Outputs are filtered.}")
    )
    code_of_practice_signatory: bool | None = field(default=None, metadata=_about(POLICIES, f"{SUMMARY} 3.1", "false"))
    rights_measures: Text | None = field(
        default=None, metadata=_about(POLICIES, f"{SUMMARY} 3.1, copyright policy", "[robots.txt is followed]")
    )
    illegal_content_measures: Text | None = field(
        default=None, metadata=_about(POLICIES, f"{SUMMARY} 3.2, {FORM}", "[Hash lists]")
    )
    personal_data_measures: Text | None = field(
        default=None, metadata=_about(POLICIES, f"{SUMMARY} 3.3, data table", "[Faces are detected]")
    )
    bias_measures: Text | None = field(
        default=None, metadata=_about(POLICIES, f"{FORM}: measures to detect identifiable biases", "[Audits]")
    )
    audit_exceptions: Mapping[str, str] | None = field(
        default=None,
        metadata=_about(
            POLICIES, "the gate of build: one reason for each audit that failed or is missing", "{audit/bias: reason}"
        ),
    )
    types_of_image_content: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 1.3", "[photography, visual art]")
    )
    types_of_text_content: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 1.3", "[captions]")
    )
    latest_data_acquisition: str | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 1.3", "'2026-10'"))
    data_characteristics: Text | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 1.3", "{en: Images of lakes in the north.}")
    )
    licensed_data_comments: Text | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.2.1", "{en: Two museums.}")
    )
    third_party_data_sets: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.2.2", "['Lakes: https://example.org/l']")
    )
    third_party_data_description: Text | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.2.2", "{en: An archive of lakes.}")
    )
    first_version_data_sets: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, "data table: already in v1", "[train]")
    )
    base_summaries: Mapping[str, str] | None = field(
        default=None,
        metadata=_about(
            DATA,
            f"{SUMMARY} 1.2: name of a base model to the address of its summary",
            "{lab/vae: https://example.org/s}",
        ),
    )
    continuous_acquisition: bool | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 1.3", "false"))
    data_description: Text | None = field(
        default=None, metadata=_about(DATA, f"{FORM}: how data were obtained and selected", "{en: How., de: Wie.}")
    )
    data_sets: Mapping[str, str] | None = field(
        default=None,
        metadata=_about(DATA, "datasets of the Hub: name of a shard folder to its address", "{train: lab/pairs}"),
    )
    public_data_sets: Mapping[str, str] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.1: published by others", "{train: https://example.org/d}")
    )
    crawler_names: tuple[str, ...] | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.3", "[ExampleBot]"))
    crawl_purposes: Text | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.3", "[Training of this model]")
    )
    crawl_content: Text | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.3", "[Photographs]"))
    crawl_behaviour: Text | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.3", "[robots.txt is followed]")
    )
    user_data_used: bool | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.4", "false"))
    user_data_from_model: bool | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.4", "false"))
    user_data_from_services: bool | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.4", "false"))
    user_data_services: Text | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.4", "[A photo service]"))
    user_data_modalities: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.4", "[image]")
    )
    other_sources: Text | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.6", "[Images from books]"))
    synthetic_models: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.5", "['captioner 2.0']")
    )
    synthetic_own_models: tuple[str, ...] | None = field(
        default=None, metadata=_about(DATA, f"{SUMMARY} 2.5", "['renderer of scenes']")
    )
    data_comments: Text | None = field(default=None, metadata=_about(DATA, f"{SUMMARY} 2.6, 3.3", "[None]"))
    training_type: str | None = field(
        default=None, metadata=_about(TRAINING, "co2_eq_emissions of the Hub", "pre-training")
    )
    hardware_used: str | None = field(default=None, metadata=_about(TRAINING, f"model card, {FORM}", "8 x NVIDIA H100"))
    geographical_location: str | None = field(
        default=None, metadata=_about(TRAINING, "co2_eq_emissions of the Hub", "Kajaani, Finland")
    )
    earlier_flops: float | None = field(
        default=None, metadata=_about(TRAINING, f"{FORM}: compute; thresholds of the AI Act", "1.2e20")
    )
    training_design: Text | None = field(
        default=None, metadata=_about(TRAINING, f"{FORM}: design specifications of training", "{en: Steps.}")
    )
    decision_rationale: Text | None = field(
        default=None, metadata=_about(TRAINING, f"{FORM}: decision rationale", "{en: Reasons.}")
    )
    inference_flops: str | None = field(
        default=None, metadata=_about(TRAINING, f"{FORM}: benchmarked inference", "2.3e9 for one image")
    )
    energy_supplier: str | None = field(default=None, metadata=_about(TRAINING, "bill of materials", "Example Energy"))
    code_repository: str | None = field(
        default=None, metadata=_about(OPENNESS, "Model Openness Framework", "https://example.org/code")
    )
    documents_licence: str | None = field(
        default=None, metadata=_about(OPENNESS, "Model Openness Framework; open: --licence", "CC-BY-4.0")
    )
    technical_report: str | None = field(
        default=None, metadata=_about(OPENNESS, "Model Openness Framework, class III", "https://example.org/report")
    )
    research_paper: str | None = field(
        default=None, metadata=_about(OPENNESS, "Model Openness Framework, class I", "https://example.org/paper")
    )
    evaluation_data: str | None = field(
        default=None, metadata=_about(OPENNESS, "Model Openness Framework, class II", "https://e.org/test (CC0-1.0)")
    )
    intermediate_checkpoints: str | None = field(
        default=None, metadata=_about(OPENNESS, "Model Openness Framework, class I", "https://example.org/c")
    )

    @property
    def open_fields(self) -> list[str]:
        """Names of the fields that are open, in their order."""
        return [entry.name for entry in fields(self) if getattr(self, entry.name) is None]

    def text(self, name: str, language: str) -> list[str]:
        """Return the entries of a field in a language; empty if it is open."""
        value = getattr(self, name)
        if value is None:
            return []
        if isinstance(value, Text):
            return value.entries(language)
        return [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
