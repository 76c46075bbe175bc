"""leam_mm/data/legal_basis.py and data_tools/rights/licence_address.py."""

import pytest

from data_tools.rights.licence_address import read_licence, strictest
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError


def test_reservations_bind_article_four_alone() -> None:
    assert [basis for basis in LegalBasis if basis.honours_reservations] == [LegalBasis.art4_general]
    assert {basis for basis in LegalBasis if basis.may_be_agreed} == {LegalBasis.licensed, LegalBasis.consent}
    assert len(LegalBasis) == 6


def test_cells_of_a_table() -> None:
    for basis in LegalBasis:
        assert LegalBasis.of(f" {basis.value} ") is basis
    assert LegalBasis.of(None, LegalBasis.art4_general) is LegalBasis.art4_general
    assert LegalBasis.of(" ", LegalBasis.consent) is LegalBasis.consent
    with pytest.raises(UserError, match="legal_basis is 'art4': write one of art3_research, art4_general"):
        LegalBasis.of("art4")
    with pytest.raises(UserError, match="legal_basis is ''"):
        LegalBasis.of(None)


PUBLIC, LICENSED = LegalBasis.public_domain, LegalBasis.licensed


@pytest.mark.parametrize(
    ("address", "name", "basis"),
    [
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0", PUBLIC),
        ("http://www.creativecommons.org/publicdomain/zero/1.0/deed.fr", "CC0-1.0", PUBLIC),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0", PUBLIC),
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0", LICENSED),
        ("https://creativecommons.org/licenses/by/4.0", "CC-BY-4.0", LICENSED),
        ("  https://CreativeCommons.org/licenses/BY-SA/3.0/legalcode\n", "CC-BY-SA-3.0", LICENSED),
        ("https://creativecommons.org/licenses/by-sa/3.0/de/deed.de", "CC-BY-SA-3.0-DE", LICENSED),
        ("https://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0", None),
        ("https://creativecommons.org/licenses/by-nd/4.0/", "CC-BY-ND-4.0", None),
        ("https://creativecommons.org/licenses/by-nc-sa/2.5/", "CC-BY-NC-SA-2.5", None),
        ("https://www.govdata.de/dl-de/by-2-0", "DL-DE-BY-2.0", LICENSED),
    ],
)
def test_known_licences(address: str, name: str, basis: LegalBasis | None) -> None:
    licence = read_licence(address)
    assert licence is not None and (licence.name, licence.basis) == (name, basis)


@pytest.mark.parametrize(
    "address",
    [
        "https://creativecommons.org.evil.example/publicdomain/zero/1.0/",
        "https://evil.example/creativecommons.org/publicdomain/zero/1.0/",
        "https://creativecommons.org@evil.example/publicdomain/zero/1.0/",
        "https://user@creativecommons.org/publicdomain/zero/1.0/",
        "https://creativecommons.org/publicdomain/zero/1.0/../../../licenses/by-nc/4.0/",
        "https://creativecommons.org/licenses/",
        "https://creativecommons.org/licenses/by-sa-nc/4.0/",
        "https://creativecommons.org/licenses/by/9.9/",
        "https://example.org/terms",
    ],
)
def test_unknown_licences_support_no_basis(address: str) -> None:
    licence = read_licence(address)
    assert licence is not None and licence.basis is None and licence.name == licence.address == address


@pytest.mark.parametrize(
    "address", ["", "#licence", "javascript:alert(1)", "CC BY 4.0", "https://", "http://[::1", "/a"]
)
def test_no_address_is_no_licence(address: str) -> None:
    assert read_licence(address) is None


def test_the_strictest_of_contradicting_licences_counts() -> None:
    zero = read_licence("https://creativecommons.org/publicdomain/zero/1.0/")
    by = read_licence("https://creativecommons.org/licenses/by/4.0/")
    terms = read_licence("https://example.org/terms")
    assert zero and by and terms
    assert strictest([zero, by]) == by and strictest([terms, zero, by]) == terms and strictest([]) is None
