"""Requests that the page refuses, with a reason in the language of the page."""

from leam_mm.errors import UserError


class Refusal(UserError):
    """A request is refused.

    Args:
        reason: Name of the sentence in leam_mm/serving/page_texts.py.
        values: What the sentence names, such as a limit.
    """

    def __init__(self, reason: str, **values: object) -> None:
        """Keep reason and values; the message is for logs, and quotes no input."""
        super().__init__(" ".join([reason.replace("_", " "), *(f"{name} {value}" for name, value in values.items())]))
        self.reason, self.values = reason, values
