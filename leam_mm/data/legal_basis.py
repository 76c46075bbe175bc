"""Legal bases on which a link is used. The basis decides which reservations of rights apply.

Directive (EU) 2019/790: article 3 (research organisations) knows no reservation; article 4 (everybody) applies only
where rights were not reserved, 4(3). Licensed, consented, public-domain and synthetic data rest on neither article.
robots.txt is independent of that: it controls access to a server and is obeyed on every basis.
"""

from enum import StrEnum

from leam_mm.errors import UserError


class LegalBasis(StrEnum):
    """Value of the column ``legal_basis``."""

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
    def comes_from_the_owner(self) -> bool:
        """Whether the basis is what the owner of an image allows, and therefore ends where the owner's site ends."""
        return self in (LegalBasis.licensed, LegalBasis.public_domain, LegalBasis.consent)

    @property
    def may_be_agreed(self) -> bool:
        """Whether an agreement with the right holder overrides robots.txt, on hosts that the agreement names."""
        return self in (LegalBasis.licensed, LegalBasis.consent)

    @classmethod
    def of(cls, word: str | None, default: "LegalBasis | None" = None) -> "LegalBasis":
        """Parse a table cell; an empty cell is ``default``.

        Raises:
            UserError: The word is unknown, or empty without a default.
        """
        text = (word or "").strip()
        if not text and default is not None:
            return default
        try:
            return cls(text)
        except ValueError:
            raise UserError(f"legal_basis is {text!r}: write one of {', '.join(cls)}") from None


def basis_of(word: str | None) -> LegalBasis:
    """Return the legal basis of a row; a missing or unknown one counts as the strictest, article 4."""
    try:
        return LegalBasis((word or "").strip())
    except ValueError:
        return LegalBasis.art4_general
