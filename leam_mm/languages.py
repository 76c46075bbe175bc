"""The 24 official languages of the European Union (Regulation No 1 of 1958, consolidated 2013), by ISO 639-1 code."""

LANGUAGE_NAMES = {
    "bg": "Bulgarian", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French", "ga": "Irish", "hr": "Croatian",
    "hu": "Hungarian", "it": "Italian", "lt": "Lithuanian", "lv": "Latvian", "mt": "Maltese", "nl": "Dutch",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish",
}  # fmt: skip
LANGUAGES = tuple(LANGUAGE_NAMES)  # sorted by code
GERMAN_LANGUAGE_NAMES = {
    "bg": "Bulgarisch", "cs": "Tschechisch", "da": "Dänisch", "de": "Deutsch", "el": "Griechisch", "en": "Englisch",
    "es": "Spanisch", "et": "Estnisch", "fi": "Finnisch", "fr": "Französisch", "ga": "Irisch", "hr": "Kroatisch",
    "hu": "Ungarisch", "it": "Italienisch", "lt": "Litauisch", "lv": "Lettisch", "mt": "Maltesisch",
    "nl": "Niederländisch", "pl": "Polnisch", "pt": "Portugiesisch", "ro": "Rumänisch", "sk": "Slowakisch",
    "sl": "Slowenisch", "sv": "Schwedisch",
}  # fmt: skip
