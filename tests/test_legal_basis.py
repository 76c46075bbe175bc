"""data_tools/rights/legal_basis.py: reservations bind article 4 alone, and an unknown word names the known ones."""

import pytest

from data_tools.rights.legal_basis import LegalBasis
from leam_mm.errors import UserError


def test_reservations_bind_article_four_alone() -> None:
    assert [basis for basis in LegalBasis if basis.honours_reservations] == [LegalBasis.art4_general]
    assert {basis for basis in LegalBasis if basis.may_be_agreed} == {LegalBasis.licensed, LegalBasis.consent}
    assert len(LegalBasis) == 6


def test_words_of_a_table() -> None:
    for basis in LegalBasis:
        assert LegalBasis.of(f" {basis.value} ") is basis
    assert LegalBasis.of(None, LegalBasis.art4_general) is LegalBasis.art4_general
    assert LegalBasis.of(" ", LegalBasis.consent) is LegalBasis.consent
    with pytest.raises(UserError, match="legal_basis is 'art4': write one of art3_research, art4_general"):
        LegalBasis.of("art4")
    with pytest.raises(UserError, match="legal_basis is ''"):
        LegalBasis.of(None)
