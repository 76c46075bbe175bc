"""On which legal basis a link is used: the one word from which it follows whose "no" binds us.

Directive (EU) 2019/790: article 3 (research organisations) knows no reservation; article 4 (everybody) is open only
where rights were not reserved, 4(3). What is licensed, consented to, in the public domain or made by ourselves does not
rest on either article. robots.txt is another matter: it says who may knock at a server, and is obeyed by all.
"""

from enum import StrEnum

from leam_mm.errors import UserError


class LegalBasis(StrEnum):
    """The word in a link's column ``legal_basis``."""

    art3_research = "art3_research"
    art4_general = "art4_general"
    licensed = "licensed"
    public_domain = "public_domain"
    consent = "consent"
    synthetic = "synthetic"

    @property
    def honours_reservations(self) -> bool:
        """Whether a reservation of text and data mining forbids the use (art. 4(3))."""
        return self is LegalBasis.art4_general

    @property
    def may_be_agreed(self) -> bool:
        """Whether the right holder's own word may stand above robots.txt, on hosts that the agreement names."""
        return self in (LegalBasis.licensed, LegalBasis.consent)

    @classmethod
    def of(cls, word: str | None, default: "LegalBasis | None" = None) -> "LegalBasis":
        """Read the word of a table; an empty cell is ``default``.

        Raises:
            UserError: The word is not known, or empty without a default.
        """
        text = (word or "").strip()
        if not text and default is not None:
            return default
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(cls)
            raise UserError(f"legal_basis is {text!r}: write one of {known}") from None
