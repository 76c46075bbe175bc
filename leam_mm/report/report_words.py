"""Words of the report and of the data page in English and German."""

from leam_mm.languages import GERMAN_LANGUAGE_NAMES, LANGUAGE_NAMES

PAGE_LANGUAGES = {"en": "English", "de": "Deutsch"}
GERMAN = {
    # numbers
    "not measured": "nicht gemessen",
    "not given": "nicht angegeben",
    "indicative only": "nur ein Anhaltswert",
    "to": "bis",
    "for {} of the energy": "für {} der Energie",
    "location-based {} g/kWh": "standortbasiert {} g/kWh",
    "market-based {} g/kWh": "marktbasiert {} g/kWh",
    "without cooling and losses (no PUE given)": "ohne Kühlung und Verluste (kein PUE angegeben)",
    "source": "Quelle",
    # page
    "Sections": "Abschnitte",
    "In other languages": "In anderen Sprachen",
    "Written {} by leam_mm.": "Geschrieben am {} von leam_mm.",
    "Remarks of the measuring programs are in English.": "Anmerkungen der Messprogramme sind auf Englisch.",
    # headings of sections
    "Images": "Bilder",
    "Audits": "Prüfungen",
    "Self-test": "Selbsttest",
    "Before and after the fine-tuning": "Vor und nach dem Finetuning",
    "Captions held out of the fine-tuning": "Bildtexte, die beim Finetuning zurückgehalten wurden",
    "Languages side by side": "Sprachen im Vergleich",
    "Naming what is in an image": "Benennen, was im Bild ist",
    "Finding images and captions": "Bilder und Bildtexte finden",
    "Following a description": "Einer Beschreibung folgen",
    "Scores by language": "Werte nach Sprache",
    "Generated against real images": "Generierte und echte Bilder",
    "Other measurements": "Weitere Messungen",
    "Training": "Training",
    "Energy and time": "Energie und Zeit",
    "How to repeat this": "So lässt sich das wiederholen",
    # key figures
    "Classification": "Klassifikation",
    "Retrieval": "Suche",
    "top 1, mean of {} languages": "Top 1, Mittel von {} Sprachen",
    "image to caption, R@1, mean of {} languages": "Bild zu Text, R@1, Mittel von {} Sprachen",
    "mean of {} languages": "Mittel von {} Sprachen",
    "{}, weakest language": "{}, schwächste Sprache",
    "{}, middle of {}": "{}, mittlerer von {}",
    "{}, weakest of {}": "{}, schwächster von {}",
    "Generated images": "Generierte Bilder",
    "Fréchet distance": "Fréchet-Distanz",
    "real against real: {}": "echte gegen echte: {}",
    "Audits passed": "Bestandene Prüfungen",
    "{} of {}": "{} von {}",
    "{} failed: {}": "{} nicht bestanden: {}",
    "{} inconclusive": "{} nicht entschieden",
    "{} not run": "{} nicht ausgeführt",
    "Controls caught": "Erkannte Kontrollen",
    "missed: {}": "nicht erkannt: {}",
    "Energy": "Energie",
    "Time": "Zeit",
    "estimated": "geschätzt",
    "measured": "gemessen",
    "only {} of {} stages": "nur {} von {} Schritten",
    "{} stages": "{} Schritte",
    "below: {}": "darunter: {}",
    # tables
    "What": "Was",
    "Value": "Wert",
    "Samples": "Anzahl",
    "Note": "Anmerkung",
    "Part": "Teil",
    "language": "Sprache",
    "combination": "Kombination",
    "seen": "gesehen",
    "unseen": "ungesehen",
    "Language": "Sprache",
    "Images measured": "Bilder",
    "In parts": "In Teilen",
    "Mean": "Mittel",
    "Before": "Vorher",
    "After": "Nachher",
    "Paired change": "Gepaarte Änderung",
    "Right class → class chosen instead (how often)": "Richtige Klasse → stattdessen gewählte Klasse (wie oft)",
    "Most frequent confusions": "Häufigste Verwechslungen",
    "The orange tick is chance.": "Der orange Strich ist der Zufall.",
    "image to caption": "Bild zu Text",
    "caption to image": "Text zu Bild",
    "R@k: the right one is among the first k.": "R@k: das Richtige ist unter den ersten k.",
    "generated": "generiert",
    "real, the floor": "echte, als Untergrenze",
    "Must be equal to compare": "Muss für einen Vergleich gleich sein",
    "Mean over the languages {} ({}).": "Mittel über die Sprachen {} ({}).",
    "Worst: {} {} ({}).": "Am schlechtesten: {} {} ({}).",
    "Worst over mean {} ({}).": "Schlechteste durch Mittel {} ({}).",
    "no interval": "kein Intervall",
    "{} and 95 % interval of each language": "{} und 95-%-Intervall jeder Sprache",
    "Confusion matrix: {}": "Verwechslungsmatrix: {}",
    "right class": "richtige Klasse",
    # images
    "{} is missing or too large to embed": "{} fehlt oder ist zum Einbetten zu groß",
    "{} more are in the folder of the evaluation.": "{} weitere liegen im Ordner der Auswertung.",
    "right": "richtig",
    "wrong: {}": "falsch: {}",
    "image of {}": "Bild {}",
    "generated image: {}": "generiertes Bild: {}",
    "Images generated for captions of the test set": "Bilder, generiert für Bildtexte der Testmenge",
    "Generated images and what was read in them": "Generierte Bilder und was darin erkannt wurde",
    "Prompts from before the fine-tuning": "Prompts aus der Zeit vor dem Finetuning",
    "Images and their reconstructions": "Bilder und ihre Rekonstruktionen",
    "image": "Bild",
    "codec": "Codec",
    "before": "vorher",
    "after": "nachher",
    "Training captions and what the judge recognised": "Bildtexte des Trainings und was der Prüfer erkannte",
    # recognition
    "Does it draw what it was taught?": "Zeichnet er, was er gelernt haben soll?",
    "Recognised after the fine-tuning": "Nach dem Finetuning erkannt",
    "{} of {} training captions": "{} von {} Bildtexten des Trainings",
    "Subjects recognised: not measured.": "Erkannte Motive: nicht gemessen.",
    "Before: {} of {} ({}, 95 % interval {}).": "Vorher: {} von {} ({}, 95-%-Intervall {}).",
    "The difference may be chance.": "Der Unterschied kann Zufall sein.",
    "Not learnt: {}.": "Nicht gelernt: {}.",
    "Learnt: {}.": "Gelernt: {}.",
    # audits
    "pass": "bestanden",
    "fail": "nicht bestanden",
    "inconclusive": "nicht entschieden",
    "not run": "nicht ausgeführt",
    "Audit": "Prüfung",
    "Verdict": "Urteil",
    "Threshold": "Schwelle",
    "Reason": "Grund",
    "at least {}": "mindestens {}",
    "at most {}": "höchstens {}",
    "{} to {}": "{} bis {}",
    "none": "keine",
    "answers {}": "beantwortet {}",
    "By duplication in the training data": "Nach Wiederholung in den Trainingsdaten",
    "copies in the training data": "Kopien in den Trainingsdaten",
    "Parts of {}": "Teile von {}",
    "Subject": "Gegenstand",
    "Control": "Kontrolle",
    "Kind": "Art",
    "Expected": "Erwartet",
    "Found": "Gefunden",
    "Caught": "Erkannt",
    "positive": "positiv",
    "negative": "negativ",
    "caught": "erkannt",
    "missed": "nicht erkannt",
    # training and cost
    "Encoder": "Encoder",
    "Latent codec": "Latenter Codec",
    "Generator": "Generator",
    "loss": "Verlust",
    "mean absolute error of held-out images": "mittlerer absoluter Fehler zurückgehaltener Bilder",
    "top-1 during training": "Top-1 während des Trainings",
    "samples seen": "gesehene Beispiele",
    "steps": "Trainingsschritte",
    "{} over {}": "{} gegen {}",
    "Stage": "Schritt",
    "CPU time": "CPU-Zeit",
    "Stolen by the host": "Vom Wirt entzogen",
    "Location-based": "Standortbasiert",
    "Market-based": "Marktbasiert",
    "How it was measured": "Wie gemessen",
    "measured in {} of the time": "in {} der Zeit gemessen",
    "at the same time as {}; energy divided by CPU time": "gleichzeitig mit {}; Energie nach CPU-Zeit aufgeteilt",
    # how to repeat
    "The same in single commands, in this order:": "Dasselbe in einzelnen Befehlen, in dieser Reihenfolge:",
    "{} samples seen": "{} gesehene Beispiele",
    "Measured with {}.": "Gemessen mit {}.",
    # data page
    "What became of every link": "Was aus jedem Link wurde",
    "Languages": "Sprachen",
    "Rights": "Rechte",
    "Domains": "Domains",
    "Names by content": "Namen nach Inhalt",
    "samples": "Beispiele",
    "captions": "Bildtexte",
    "{} words": "{} Wörter",
    "languages": "Sprachen",
    "domains": "Domains",
    "duplicates removed": "entfernte Duplikate",
    "withdrawn": "zurückgezogen",
    "Captions by language": "Bildtexte nach Sprache",
    "Samples that have a language": "Beispiele, die eine Sprache haben",
    "Captions by source": "Bildtexte nach Quelle",
    "Legal basis": "Rechtsgrundlage",
    "Licence": "Lizenz",
    "Evidence with the samples": "Nachweise bei den Beispielen",
    "Fetched by": "Abgerufen von",
    "Fetched in": "Abgerufen im",
    "Shorter side in pixels": "Kürzere Seite in Pixeln",
    "Shape": "Form",
    "Format": "Format",
    "Changed": "Verändert",
    "stage": "Schritt",
    "rule": "Regel",
    "links": "Links",
    "in": "herein",
    "dropped": "verworfen",
    "withdrawn later": "später zurückgezogen",
    "kept": "behalten",
    "registered domain": "registrierte Domain",
    "bytes": "Bytes",
    "folder": "Ordner",
    "shards": "Shards",
    "{} more": "{} weitere",
    "Bytes {}.": "Bytes: {}.",
    "fetched": "abgerufen",
    "stored": "gespeichert",
    "fetched where known": "abgerufen, wo bekannt",
    "And {} more.": "Und {} weitere.",
    "{} captions are machine translated.": "{} Bildtexte sind maschinell übersetzt.",
    "No images.": "Keine Bilder.",
    "All {} captions": "Alle {} Bildtexte",
    "sample {}": "Beispiel {}",
    "not stated": "nicht angegeben",
    "Written by leam_mm, data_tools/describe_dataset.py.": "Geschrieben von leam_mm, data_tools/describe_dataset.py.",
}
GERMAN |= {  # sentences
    "Recognised after the fine-tuning: {} of {} training captions ({}, 95 % interval {}).": (
        "Nach dem Finetuning erkannt: {} von {} Bildtexten des Trainings ({}, 95-%-Intervall {})."
    ),
    "The judge was tested: it names {} of {} training pictures, moved and through the codec.": (
        "Der Prüfer wurde geprüft: Er benennt {} von {} Trainingsbildern, verschoben und durch den Codec."
    ),
    "It names {} of {} pictures that were no reference: it may miss an image in another style.": (
        "Er benennt {} von {} Bildern, die keine Vorlage waren; ein Bild in anderem Stil kann er also übersehen."
    ),
    "In {} of {} images that do not show the subject it says that they do.": (
        "Bei {} von {} Bildern, die das Motiv nicht zeigen, meint er es zu sehen."
    ),
    "{} samples, selected by a hash of the data alone.": (
        "{} Beispiele, allein durch einen Hash der Daten ausgewählt."
    ),
    "No sample comes from a domain: all were files.": ("Kein Beispiel kommt von einer Domain: alle waren Dateien."),
    "No ledger was given: what was left out is not known.": (
        "Kein Ledger wurde angegeben: was weggelassen wurde, ist nicht bekannt."
    ),
    "{} links came in. {} were dropped, {} were withdrawn later, {} are in the shards: every link is counted once.": (
        "{} Links kamen herein. {} wurden verworfen, {} später zurückgezogen, {} sind in den Shards: jeder Link ist "
        "einmal gezählt."
    ),
    (
        "What is in this data set, where it comes from, on which legal basis it is used, and what was left out and "
        "why. Every number was counted."
    ): (
        "Was in diesem Datensatz ist, woher es kommt, auf welcher Rechtsgrundlage es genutzt wird, und was weshalb "
        "weggelassen wurde. Jede Zahl ist gezählt."
    ),
    (
        "What this run made, how good it is, and what it cost. Numbers come with a 95\u202f% interval where "
        "one can be given; what was not measured says so. The commands that lead here are at the end."
    ): (
        "Was dieser Lauf erzeugt hat, wie gut es ist und was es gekostet hat. Zahlen haben ein "
        "95-%-Intervall, wo es eines gibt; was nicht gemessen wurde, ist so bezeichnet. Am Ende stehen "
        "die Befehle, die hierher führen."
    ),
    (
        "The same prompts, noise and images for the generator before and after its fine-tuning. Where the"
        " intervals of a row overlap, the difference may be chance; a paired change whose interval "
        "excludes zero is hardly chance."
    ): (
        "Dieselben Prompts, dasselbe Rauschen und dieselben Bilder für den Generator vor und nach dem "
        "Finetuning. Überlappen sich die Intervalle einer Zeile, kann der Unterschied Zufall sein; eine "
        "gepaarte Änderung, deren Intervall die Null ausschließt, ist kaum Zufall."
    ),
    ("One row is one right class, one column the class chosen. A darker cell is a larger share of its row."): (
        "Eine Zeile ist eine richtige Klasse, eine Spalte die gewählte. Eine dunklere Zelle ist ein "
        "größerer Anteil ihrer Zeile."
    ),
    "A row is one description, with one image for each language. No image was chosen by hand.": (
        "Eine Zeile ist eine Beschreibung, mit einem Bild für jede Sprache. Kein Bild wurde von Hand ausgewählt."
    ),
    (
        "A pass needs the whole 95 % interval inside the threshold, a fail all of it outside; otherwise "
        "the samples do not decide."
    ): (
        "Bestanden heißt: das ganze 95-%-Intervall liegt innerhalb der Schwelle; nicht bestanden: es "
        "liegt ganz außerhalb; sonst reichen die Daten nicht für ein Urteil."
    ),
    ("{} of {} controls are on the right side. A positive control has a planted fault, a negative one is clean."): (
        "{} von {} Kontrollen sind auf der richtigen Seite. Eine positive Kontrolle hat einen eingebauten"
        " Fehler, eine negative ist sauber."
    ),
    "Emissions, {}. Location-based is the grid's mean, market-based the contract's.": (
        "Emissionen, {}. Standortbasiert ist das Mittel des Stromnetzes, marktbasiert der Vertrag."
    ),
    "In a copy of the repository with leam_mm installed, one command makes everything on this page:": (
        "In einer Kopie des Repositorys, in der leam_mm installiert ist, erzeugt ein Befehl alles auf dieser Seite:"
    ),
    "The commands of the stages, whose order was not recorded:": (
        "Die Befehle der Schritte, deren Reihenfolge nicht aufgezeichnet wurde:"
    ),
}
METRIC_TITLES = {  # of a part of a metric's name: English and German
    "top1": ("zero-shot classification, top-1", "Zero-Shot-Klassifikation, Top-1"),
    "top5": ("zero-shot classification, top-5", "Zero-Shot-Klassifikation, Top-5"),
    "mean_per_class": ("mean over classes of top-1", "Mittel von Top-1 über die Klassen"),
    "linear_probe": ("linear probe", "Linear Probe"),
    "few_shot": ("few-shot classification", "Few-Shot-Klassifikation"),
    "r1": ("recall at 1", "Recall bei 1"),
    "r5": ("recall at 5", "Recall bei 5"),
    "r10": ("recall at 10", "Recall bei 10"),
    "retrieval": ("retrieval, published protocol", "Suche, veröffentlichtes Protokoll"),
    "retrieval_equal_captions_right": (
        "retrieval, equal captions right (not the published protocol)",
        "Suche, gleiche Bildtexte gelten als richtig (nicht das veröffentlichte Protokoll)",
    ),
    "image_to_text": ("image to text", "Bild zu Text"),
    "text_to_image": ("text to image", "Text zu Bild"),
    "frechet_distance": ("Fréchet distance", "Fréchet-Distanz"),
    "kernel_distance": ("kernel distance", "Kernel-Distanz"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "compositional": ("compositional", "Komposition"),
    "single": ("single objects", "einzelne Objekte"),
    "pair": ("pairs", "Paare"),
    "count": ("count", "Anzahl"),
    "colour": ("colour", "Farbe"),
    "shape": ("shape", "Form"),
    "colour_shape": ("colour and shape", "Farbe und Form"),
    "both_objects": ("both objects", "beide Objekte"),
    "relation": ("relation", "Lage"),
    "generation": ("generation", "Generierung"),
    "clip_score": ("CLIPScore", "CLIPScore"),
    "soft_tifa": ("Soft-TIFA", "Soft-TIFA"),
    "all_atoms": ("all atoms at once", "alle Teilfragen zugleich"),
    "scene_reader": ("scene reader", "Szenenleser"),
    "encoder": ("encoder", "Encoder"),
    "recognised_captions": ("training captions whose subject is recognised", "Bildtexte, deren Motiv erkannt wird"),
    "subject": ("subject", "Motiv"),
    "subject_judge": ("judge of subjects", "Prüfer der Motive"),
    "known_pictures": ("known pictures named right", "bekannte Bilder richtig benannt"),
    "new_pictures": ("new pictures named right", "neue Bilder richtig benannt"),
    "other_images": ("images without the subject named so", "Bilder ohne das Motiv so benannt"),
    "generated": ("generated images", "generierte Bilder"),
    "real": ("real images", "echte Bilder"),
}
AUDIT_NAMES = {  # German
    "provenance": "Herkunft", "opt out": "Nutzungsvorbehalte", "personal data": "personenbezogene Daten",
    "energy": "Energie", "language parity": "Gleichheit der Sprachen", "encoder bias": "Verzerrung des Encoders",
    "membership inference": "Erkennen von Trainingsbeispielen", "memorization": "Auswendiglernen",
    "generator bias": "Verzerrung des Generators",
}  # fmt: skip


def word(text: str, language: str) -> str:
    """Return a fixed word or phrase in a language; an unknown one stays as it is."""
    return GERMAN.get(text, text) if language == "de" else text


def language_name(code: str, language: str) -> str:
    """Return the name of an official EU language in a language; another code stays as it is."""
    return (GERMAN_LANGUAGE_NAMES if language == "de" else LANGUAGE_NAMES).get(code, code)


def plain(name: str) -> str:
    """Return a name without underscores."""
    return name.replace("_", " ")


def metric_title(name: str, language: str) -> str:
    """Return a path-like name of a metric for readers, such as "Pairs · relation"."""
    return capital(metric_words(name, language))


def metric_words(name: str, language: str) -> str:
    """Return a path-like name of a metric inside a sentence, such as "pairs · relation"."""
    name = name.removeprefix("zero_shot/")  # the evaluator's own name says what its parts say
    trained = "linear_probe/" in name or "few_shot/" in name
    titles = METRIC_TITLES | {"top1": ("top-1", "Top-1"), "top5": ("top-5", "Top-5")} if trained else METRIC_TITLES
    parts = [titles[part][language == "de"] if part in titles else plain(part) for part in name.split("/")]
    return " · ".join(parts)


def capital(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def audit_title(name: str, language: str) -> str:
    """Return the name of an audit, such as `language_parity` or `memorization/near_copies`, for readers."""
    audit, slash, part = plain(name).partition("/")
    return (AUDIT_NAMES.get(audit, audit) if language == "de" else audit) + slash + part
