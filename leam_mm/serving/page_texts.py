"""All words of the page, in English and German."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from leam_mm.languages import GERMAN_LANGUAGE_NAMES, LANGUAGE_NAMES

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")
NAMES = {"en": "English", "de": "Deutsch"}


@dataclass(frozen=True)
class Texts:
    """Words of the page in one language; braces are filled in."""

    language: Language
    notice: str
    switch: str
    contrast: str
    draw_tab: str
    edit_tab: str
    describe_tab: str
    compare_tab: str
    documents_tab: str
    prompt: str
    prompt_info: str
    edit_prompt: str
    advanced: str
    seed: str
    seed_info: str
    images: str
    steps: str
    steps_info: str
    guidance: str
    guidance_info: str
    draw: str
    stop: str
    upload: str
    upload_edit: str
    strength: str
    strength_info: str
    mask: str
    edit: str
    describe: str
    labels_from: str
    typed: str
    labels_own: str
    labels_own_info: str
    labels_heading: str
    labels_note: str
    captions_heading: str
    captions_note: str
    no_captions: str
    probability: str
    similarity: str
    label: str
    caption: str
    compare: str
    compare_note: str
    numbers: str
    metric: str
    not_measured: str
    no_numbers: str
    interval_note: str
    document: str
    card: str
    files: str
    images_heading: str
    ai_label: str
    ai_edited_label: str
    save: str
    seed_of: str
    ready: str
    waiting: str
    starting: str
    progress: str
    finished: str
    stopped: str
    refusals: Mapping[str, str]
    language_names: Mapping[str, str]

    def refusal(self, reason: str, values: Mapping[str, object]) -> str:
        """Return the sentence of a refusal."""
        return self.refusals[reason].format(**{name: self.value(value) for name, value in values.items()})

    def value(self, value: object) -> object:
        """Return a value in a sentence: the name of an input in this language, or the value itself."""
        names = {"seed": self.seed, "images": self.images, "steps": self.steps, "guidance": self.guidance,
                 "strength": self.strength}  # fmt: skip
        return names.get(value, value) if isinstance(value, str) else value


ENGLISH = Texts(
    language="en",
    notice="The images on this page are made by an AI model. Each carries marks that say so.",
    switch="Language",
    contrast="Light or dark",
    draw_tab="Draw",
    edit_tab="Edit",
    describe_tab="Label",
    compare_tab="Compare",
    documents_tab="Documents",
    prompt="What should the image show?",
    prompt_info="In any language, up to {limit} characters. Enter draws.",
    edit_prompt="What should the edited image show?",
    advanced="Advanced",
    seed="Seed",
    seed_info="The same seed and settings give the same image. Empty takes a new one each time.",
    images="Number of images",
    steps="Steps",
    steps_info="More steps take longer and are often better.",
    guidance="Guidance",
    guidance_info="How closely the image follows the text.",
    draw="Draw",
    stop="Stop",
    upload="Image",
    upload_edit="Image to edit",
    strength="Strength",
    strength_info="0 keeps the image, 1 replaces it.",
    mask="Mask (optional): white is replaced",
    edit="Edit",
    describe="Find labels",
    labels_from="Labels",
    typed="Your own",
    labels_own="Your own labels",
    labels_own_info="One a line or between commas, in any language.",
    labels_heading="Labels",
    labels_note="A probability says which of these labels fits best, not how often that is right. No label may fit.",
    captions_heading="Nearest captions",
    captions_note="Captions of the table that are most similar to the image; 1 is the same direction.",
    no_captions="This page has no table of captions.",
    probability="Probability",
    similarity="Similarity",
    label="Label",
    caption="Caption",
    compare="Draw with both",
    compare_note="Both releases draw the same text from the same seed.",
    numbers="Measured numbers",
    metric="Metric",
    not_measured="not measured",
    no_numbers="Neither release states measured numbers.",
    interval_note="In brackets: the interval that the evaluation states.",
    document="Document",
    card="Model card",
    files="Files for programs",
    images_heading="Images",
    ai_label="AI-generated",
    ai_edited_label="AI-edited",
    save="Save image",
    seed_of="Seed {seed}",
    ready="Ready.",
    waiting="Waiting: number {position} in the queue.",
    starting="Working.",
    progress="Working: {finished} of {steps} images so far.",
    finished="Finished.",
    stopped="Stopped.",
    refusals={
        "no_prompt": "Please write what the image should show.",
        "long_prompt": "The text has {length} characters. Please shorten it to {limit}.",
        "too_many_of_yours": "You have {limit} requests in the queue already. Please wait for one of them.",
        "queue_full": "{limit} requests are waiting already. Please try again in a minute.",
        "closing": "The page is being closed.",
        "no_image": "Please choose an image first.",
        "not_an_image": "This file is not an image that can be read. Please choose a JPEG, PNG or WebP file.",
        "large_file": "The file is larger than {megabytes} MB. Please choose a smaller one.",
        "large_image": "The image is too large to be opened. Please choose one of at most {megapixels} megapixels.",
        "few_labels": "Please write at least two labels, one a line or between commas.",
        "many_labels": "Please write at most {limit} labels.",
        "long_label": "A label is longer than {limit} characters. Please shorten it.",
        "twice": "The label “{label}” appears twice. Please write each label once.",
        "on_deletion_list": "This image is on the publisher’s list of deleted images and is not shown.",
        "number": "{name}: please give a number from {least} to {most}.",
        "seed": "Seed: please write a whole number, or nothing.",
        "fault": "This did not work. Please try again, or tell who runs this page; the log names the reason.",
    },
    language_names=LANGUAGE_NAMES,
)
GERMAN = Texts(
    language="de",
    notice="Die Bilder auf dieser Seite stammen von einem KI-Modell und sind entsprechend gekennzeichnet.",
    switch="Sprache",
    contrast="Hell oder dunkel",
    draw_tab="Zeichnen",
    edit_tab="Bearbeiten",
    describe_tab="Benennen",
    compare_tab="Vergleichen",
    documents_tab="Dokumente",
    prompt="Was soll das Bild zeigen?",
    prompt_info="In jeder Sprache, bis zu {limit} Zeichen. Die Eingabetaste startet.",
    edit_prompt="Was soll das bearbeitete Bild zeigen?",
    advanced="Weitere Einstellungen",
    seed="Startwert",
    seed_info="Gleicher Startwert und gleiche Einstellungen ergeben dasselbe Bild. Leer: jedes Mal ein neuer.",
    images="Anzahl der Bilder",
    steps="Schritte",
    steps_info="Mehr Schritte dauern länger und sind oft besser.",
    guidance="Texttreue",
    guidance_info="Wie genau das Bild dem Text folgt.",
    draw="Zeichnen",
    stop="Abbrechen",
    upload="Bild",
    upload_edit="Bild zum Bearbeiten",
    strength="Stärke",
    strength_info="0 behält das Bild, 1 ersetzt es.",
    mask="Maske (optional): Weißes wird ersetzt",
    edit="Bearbeiten",
    describe="Begriffe finden",
    labels_from="Begriffe",
    typed="Eigene",
    labels_own="Eigene Begriffe",
    labels_own_info="Einer je Zeile oder durch Kommas getrennt, in jeder Sprache.",
    labels_heading="Begriffe",
    labels_note="Die Wahrscheinlichkeit sagt, welcher dieser Begriffe am besten passt, nicht, wie oft das stimmt. "
    "Möglicherweise passt keiner.",
    captions_heading="Ähnlichste Bildtexte",
    captions_note="Bildtexte der Tabelle, die dem Bild am ähnlichsten sind; 1 ist dieselbe Richtung.",
    no_captions="Diese Seite hat keine Tabelle mit Bildtexten.",
    probability="Wahrscheinlichkeit",
    similarity="Ähnlichkeit",
    label="Begriff",
    caption="Bildtext",
    compare="Mit beiden zeichnen",
    compare_note="Beide Modelle zeichnen denselben Text mit demselben Startwert.",
    numbers="Gemessene Werte",
    metric="Messgröße",
    not_measured="nicht gemessen",
    no_numbers="Keines der beiden Modelle nennt gemessene Werte.",
    interval_note="In Klammern: das Intervall, das die Auswertung angibt.",
    document="Dokument",
    card="Modellkarte",
    files="Dateien für Programme",
    images_heading="Bilder",
    ai_label="KI-generiert",
    ai_edited_label="Mit KI bearbeitet",
    save="Bild speichern",
    seed_of="Startwert {seed}",
    ready="Bereit.",
    waiting="Wartet: Platz {position} in der Warteschlange.",
    starting="In Arbeit.",
    progress="In Arbeit: bisher {finished} von {steps} Bildern.",
    finished="Fertig.",
    stopped="Abgebrochen.",
    refusals={
        "no_prompt": "Bitte schreiben Sie, was das Bild zeigen soll.",
        "long_prompt": "Der Text hat {length} Zeichen. Bitte kürzen Sie ihn auf {limit}.",
        "too_many_of_yours": "Von Ihnen warten schon {limit} Anfragen. Bitte warten Sie, bis eine fertig ist.",
        "queue_full": "Es warten schon {limit} Anfragen. Bitte versuchen Sie es in einer Minute noch einmal.",
        "closing": "Die Seite wird gerade beendet.",
        "no_image": "Bitte wählen Sie zuerst ein Bild.",
        "not_an_image": "Diese Datei ist kein lesbares Bild. Bitte wählen Sie eine JPEG-, PNG- oder WebP-Datei.",
        "large_file": "Die Datei ist größer als {megabytes} MB. Bitte wählen Sie eine kleinere.",
        "large_image": "Das Bild ist zu groß. Bitte wählen Sie eines mit höchstens {megapixels} Megapixeln.",
        "few_labels": "Bitte schreiben Sie mindestens zwei Begriffe, je Zeile einen oder durch Kommas getrennt.",
        "many_labels": "Bitte schreiben Sie höchstens {limit} Begriffe.",
        "long_label": "Ein Begriff ist länger als {limit} Zeichen. Bitte kürzen Sie ihn.",
        "twice": "Der Begriff „{label}“ kommt zweimal vor. Bitte schreiben Sie jeden nur einmal.",
        "on_deletion_list": "Dieses Bild steht auf der Löschliste des Herausgebers und wird nicht angezeigt.",
        "number": "{name}: Bitte geben Sie eine Zahl von {least} bis {most} an.",
        "seed": "Startwert: Bitte schreiben Sie eine ganze Zahl oder nichts.",
        "fault": "Das hat nicht geklappt. Bitte versuchen Sie es noch einmal, oder wenden Sie sich an den Betreiber "
        "dieser Seite; der Grund steht im Protokoll.",
    },
    language_names=GERMAN_LANGUAGE_NAMES,
)
TEXTS: dict[Language, Texts] = {"en": ENGLISH, "de": GERMAN}


def preferred_language(accept: str) -> Language:
    """Return the language of the page that a browser prefers.

    Args:
        accept: Header Accept-Language (RFC 9110, section 12.5.4).
    """
    weights: dict[str, float] = {}
    for part in accept[:1000].split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            weights.setdefault(name.split("-")[0].lower(), float(weight or 1))
        except ValueError:
            continue
    best = max(LANGUAGES, key=lambda language: weights.get(language, 0.0))
    return best if weights.get(best, 0.0) > 0 else "en"
