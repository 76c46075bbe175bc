"""Training compute of a release against the thresholds of the AI Act, with what follows."""

from dataclasses import dataclass

from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.words import percent, scientific, word
from leam_mm.planning.ai_act_compute import GENERAL_PURPOSE, SYSTEMIC_RISK, THRESHOLDS, Threshold

GERMAN_NAMES = {
    GENERAL_PURPOSE: "KI-Modell mit allgemeinem Verwendungszweck (Richtwert)",
    SYSTEMIC_RISK: "KI-Modell mit allgemeinem Verwendungszweck und systemischem Risiko (Vermutung)",
}
GERMAN_SOURCES = {
    GENERAL_PURPOSE: "Leitlinien der Kommission C(2025) 5045, 18. Juli 2025, für Modelle, die Sprache oder aus Text "
    "Bilder oder Videos erzeugen",
    SYSTEMIC_RISK: "Verordnung (EU) 2024/1689, Art. 51 Abs. 2",
}
GERMAN_DUTIES = {
    GENERAL_PURPOSE: (
        "technische Dokumentation und Informationen für nachgelagerte Anbieter (Art. 53 Abs. 1 Buchst. a, b), von "
        "denen offene Modelle ohne systemisches Risiko befreit sind",
        "eine Strategie zum Urheberrecht und eine öffentliche Zusammenfassung der Trainingsinhalte (Art. 53 Abs. 1 "
        "Buchst. c, d), auch für offene Modelle",
    ),
    SYSTEMIC_RISK: (
        "Mitteilung an die Kommission binnen zwei Wochen, nachdem die Schwelle erreicht oder absehbar ist (Art. 52 "
        "Abs. 1)",
        "Bewertung des Modells, Minderung systemischer Risiken, Meldung schwerwiegender Vorfälle, Cybersicherheit "
        "(Art. 55)",
        "die Ausnahme für offene Modelle endet",
    ),
}


@dataclass(frozen=True)
class ComputeStatement:
    """What the documents say of the training compute.

    Args:
        total: FLOP of the recorded runs and of what came before; None if a run was not counted.
        incomplete: Whether compute before the recorded runs is known to be missing, so that ``total`` is too small.
        sentence: The sentence of the documents.
        rows: One row for each threshold: FLOP, meaning, share of it, source.
        duties: What follows from the thresholds that are exceeded; empty if none is.
    """

    total: float | None
    incomplete: bool
    sentence: str
    rows: list[list[str]]
    duties: list[str]


def compute_statement(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> ComputeStatement:
    """Compare the compute of a release with the thresholds.

    The encoder and the codec are counted with the generator that contains them.
    """
    total = None if facts.flops is None else facts.flops + (publisher.earlier_flops or 0.0)
    incomplete = publisher.earlier_flops is None and any(stage.base for stage in facts.stages)
    rows = [_row(threshold, total, language) for threshold in THRESHOLDS]
    exceeded = [threshold for threshold in THRESHOLDS if total is not None and total > threshold.flops]
    duties = [
        duty for threshold in exceeded for duty in (GERMAN_DUTIES[threshold] if language == "de" else threshold.duties)
    ]
    return ComputeStatement(total, incomplete, _sentence(total, incomplete, facts.generates, language), rows, duties)


def _row(threshold: Threshold, total: float | None, language: str) -> list[str]:
    german = language == "de"
    share = word("not counted", language) if total is None else percent(total / threshold.flops, language)
    name = GERMAN_NAMES[threshold] if german else threshold.name
    source = GERMAN_SOURCES[threshold] if german else threshold.source
    return [f"{threshold.flops:.0e}", name, share, source]


def _sentence(total: float | None, incomplete: bool, generates: bool, language: str) -> str:
    amount = scientific(total, language)
    if language == "de":
        text = (
            f"Rechenaufwand des Trainings: {amount} FLOP, geschätzt aus den Einstellungen und den gesehenen Beispielen."
        )
        if total is None:
            text = "Der Rechenaufwand des Trainings wurde nicht gezählt."
        elif incomplete:
            text += " Der Aufwand für die Ausgangsgewichte kommt hinzu; er ist nicht bekannt."
        encoder = " Ein Encoder erzeugt weder Sprache noch Bilder: Der Richtwert von 1e23 nennt ihn nicht."
    else:
        text = f"Training compute: {amount} FLOP, estimated from the settings and the samples seen."
        if total is None:
            text = "The training compute was not counted."
        elif incomplete:
            text += " The compute of the weights that training started from comes on top; it is not known."
        encoder = " An encoder generates neither language nor images: the criterion of 1e23 does not name it."
    return text if generates else text + encoder
