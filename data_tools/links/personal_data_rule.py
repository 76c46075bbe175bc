"""Replace personal data in captions by a placeholder such as ``<email>``, or drop the link.

leam_mm/data/personal_data.py finds it. Nothing here uses the network.
"""

from collections.abc import Iterable

from leam_mm.data.personal_data import KINDS, PersonalData, find_personal_data
from leam_mm.errors import UserError

ACTIONS = ("redact", "drop", "keep")


class PersonalDataRule:
    """Action for each kind of personal data in captions.

    Args:
        actions: Kind -> ``redact`` (a placeholder such as ``<email>``), ``drop`` (the link) or ``keep``. Kinds that are
            not given are redacted.
        shaped: Also act on findings that only have the form; affects captions with article numbers.
    """

    def __init__(self, actions: dict[str, str] | None = None, shaped: bool = False) -> None:
        """Check the kinds and actions; see the class for the arguments."""
        self.actions = dict.fromkeys(KINDS, "redact") | (actions or {})
        self.shaped = shaped
        for kind, action in self.actions.items():
            if kind not in KINDS or action not in ACTIONS:
                choices = f"{', '.join(KINDS)} and {', '.join(ACTIONS)}"
                raise UserError(f"personal data '{kind}={action}': give KIND=ACTION of {choices}")

    def clean(self, text: str) -> tuple[str, list[PersonalData]]:
        """Return the text with placeholders, and the findings with spans in the original text."""
        found = [item for item in find_personal_data(text, self.shaped) if self.actions[item.kind] != "keep"]
        for item in reversed(found):
            text = f"{text[: item.start]}<{item.kind}>{text[item.end :]}"
        return text, found

    def dropping(self, found: Iterable[PersonalData]) -> PersonalData | None:
        """Return the first finding for which the link is dropped, or None."""
        return next((item for item in found if self.actions[item.kind] == "drop"), None)
