import numpy as np
import pytest

from data_tools.vetting.duplicate_groups import Components, choose, preference


def on_a_line(places: list[float], reach: float = 1.0) -> tuple:
    """Rows at positions on a line; those within reach are similar."""
    place = np.array(places)

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.abs(place[first] - place[second])

    def similar(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return distance(first, second) <= reach

    components = Components(len(places))
    first, second = np.triu_indices(len(places), 1)
    near = similar(first, second)
    components.join(first[near], second[near])
    return components, similar, distance


def test_groups_are_connected_components() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.integers(0, 60, (2, 40))
        components = Components(60)
        for half in (slice(0, 20), slice(20, 40)):
            components.join(first[half], second[half])
        group = np.arange(60)
        for _ in range(60):
            for one, other in zip(first, second, strict=True):
                group[[one, other]] = group[[one, other]].min()
        assert np.array_equal(components.find(np.arange(60)), group)
        found = {tuple(rows.tolist()) for rows in components.groups()}
        assert found == {tuple(np.flatnonzero(group == name).tolist()) for name in group if (group == name).sum() > 1}


def test_the_order_of_the_pairs_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.integers(0, 200, (2, 150))
    once, again = Components(200), Components(200)
    once.join(first, second)
    for one, other in generator.permutation(np.stack([second, first], axis=1)):
        again.join(np.array([one]), np.array([other]))
    assert np.array_equal(once.find(np.arange(200)), again.find(np.arange(200)))


def test_a_chain_is_not_dropped_as_a_whole() -> None:
    components, similar, distance = on_a_line([float(place) for place in range(7)])
    grouping = choose(components, np.arange(7), similar, distance)
    assert grouping.kept_by.tolist() == [0, 0, 2, 2, 4, 4, 6]
    assert grouping.size.tolist() == [7] * 7 and grouping.diameter.tolist() == [6.0] * 7


def test_dropped_rows_are_similar_to_kept_ones_which_are_not_similar() -> None:
    generator = np.random.default_rng(2)
    places = generator.uniform(0, 40, 120).tolist()
    components, similar, distance = on_a_line(places)
    kept_by = choose(components, generator.permutation(120), similar, distance).kept_by
    assert similar(np.arange(120), kept_by).all() and np.array_equal(kept_by[kept_by], kept_by)
    stays = np.unique(kept_by)
    first, second = np.triu_indices(len(stays), 1)
    assert 1 < len(stays) < 120 and not similar(stays[first], stays[second]).any()


def test_the_best_one_stays() -> None:
    keys = ["d", "c", "b", "a"]
    records = [{"width": 10, "height": 10}, {"width": 20, "height": 20}, {"width": 20, "height": 20}, {"width": None}]
    assert preference(keys, records, np.array([0, 5, 5, 100])).tolist() == [2, 1, 0, 3]
    assert preference(keys, records, np.array([0, 6, 5, 100])).tolist() == [2, 0, 1, 3]
    assert preference(keys, [*records[:3], {"against": True}]).tolist() == [3, 2, 1, 0]


def test_rows_of_other_data_sets_always_stay() -> None:
    components, similar, distance = on_a_line([0.0, 0.5, 0.6, 3.0, 3.1])
    foreign = np.array([True, True, False, False, False])
    grouping = choose(components, np.arange(5), similar, distance, foreign)
    assert grouping.kept_by.tolist() == [0, 1, 0, 3, 3]


def test_the_diameter_of_a_large_group_is_sampled() -> None:
    components, similar, distance = on_a_line(np.linspace(0, 5, 1001).tolist())
    grouping = choose(components, np.arange(1001), similar, distance)
    assert grouping.diameter[0] == pytest.approx(5.0) and grouping.size[0] == 1001
    assert len(np.unique(grouping.kept_by)) <= 6
