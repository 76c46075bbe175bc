import numpy as np
import pytest
from scipy.stats import binom

from leam_mm.marking.agreeing_bits import AgreeingBits, measured_dispersion


def test_independent_bits_are_binomial() -> None:
    found = AgreeingBits(32)
    for agreeing in range(33):
        assert found.tail(agreeing) == pytest.approx(binom.sf(agreeing - 1, 32, 0.5))
    assert found.tail(0) == 1 and found.tail(32) == pytest.approx(2.0**-32)
    assert found.least(1e-3) == 26 and found.tail(26) <= 1e-3 < found.tail(25)
    assert AgreeingBits(8).least(1e-6) == 9  # not reached


def test_equal_bits_leave_no_evidence() -> None:
    assert AgreeingBits(32, 32.0).tail(32) == pytest.approx(0.5, abs=0.01)
    rates = [AgreeingBits(32, dispersion).tail(26) for dispersion in (1, 1.3, 2, 4)]
    assert rates == sorted(rates)


@pytest.mark.parametrize("shared", [0.0, 0.35])
def test_the_stated_rate_holds_for_simulated_unmarked_images(shared: float) -> None:
    """Bits with a common part are correlated, and a binomial would promise too much."""
    generator, message = np.random.default_rng(3), np.random.default_rng(4).integers(0, 2, 32).astype(bool)

    def agreeing(count: int) -> np.ndarray:
        own, common = generator.normal(size=(count, 32)), generator.normal(size=(count, 1))
        sign = np.where(message, 1, -1)  # the worst case: the common part points along the message
        return (((1 - shared**2) ** 0.5 * own + shared * common * sign > 0) == message).sum(1)

    dispersion = measured_dispersion(agreeing(2000), 32)
    found = AgreeingBits(32, dispersion)
    trials = agreeing(200_000)
    for rate in (1e-1, 1e-2, 1e-3):
        wrong = int((trials >= found.least(rate)).sum())
        assert binom.sf(wrong - 1, len(trials), rate) > 1e-3, (rate, wrong)
    if shared:
        assert dispersion > 3 and (trials >= AgreeingBits(32).least(1e-3)).mean() > 5e-3
    else:
        assert dispersion < 1.1


def test_an_offset_of_the_mean_counts_as_variance() -> None:
    assert measured_dispersion(np.full(500, 20), 32) > 2
