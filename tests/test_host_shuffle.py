import numpy as np

from data_tools.links.host_shuffle import even_positions, hashed, mixed


def links(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    names = np.array([hashed(f"https://h{number}.example") for number in range(len(counts))], np.uint64)
    origin = np.repeat(names, counts)
    link = np.random.default_rng(seed).integers(0, 2**63, sum(counts)).astype(np.uint64)
    return origin, link


def test_the_order_is_a_function_of_the_set_and_the_seed() -> None:
    origin, link = links([500, 100, 50, 1, 1, 1])
    position = even_positions(origin, link, 7)
    assert position.min() >= 0 and position.max() < 1 and len(set(position)) == len(position)
    shuffled = np.random.default_rng(1).permutation(len(link))
    assert (even_positions(origin[shuffled], link[shuffled], 7) == position[shuffled]).all()
    assert (even_positions(origin, link, 8) != position).mean() > 0.9
    assert len(even_positions(origin[:0], link[:0], 0)) == 0


def test_an_origins_links_are_spread_evenly() -> None:
    """In windows of 200 an origin's count stays within 25 % of its share; shuffled, it strays far more."""
    counts = [8000, 2000, 1000, *[100] * 60, *[1] * 3000]
    origin, link = links(counts)
    order = np.argsort(even_positions(origin, link, 0))
    shuffled = np.random.default_rng(0).permutation(len(link))

    def inside(ordered: np.ndarray, number: int, window: int = 200) -> np.ndarray:
        here = np.cumsum(np.r_[0, origin[ordered] == np.uint64(hashed(f"https://h{number}.example"))])
        return here[window:] - here[:-window]

    for number, count in enumerate(counts[:3]):
        expected = 200 * count / len(link)
        assert inside(order, number).max() <= 1.25 * expected + 1 and inside(order, number).min() >= 0.75 * expected - 1
        assert inside(order, number).std() < 0.7 * inside(shuffled, number).std()
    for number in range(3, 63):  # one in two hundred links: never three at once
        assert inside(order, number).max() <= 3 and inside(order, number).min() <= 1


def test_hashes_are_the_same_everywhere() -> None:
    assert hashed("https://a.example") == 14450428034382011267
    outputs = [16294208416658607535, 7960286522194355700, 487617019471545679]  # of SplitMix64 from state 0
    assert [int(mixed(np.array([0], np.uint64), seed)[0]) for seed in range(3)] == outputs
