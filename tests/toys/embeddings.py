"""Embeddings for probes."""

import numpy

from leam_mm.evaluators.probe_data import ProbeData


def clouds(each: int = 30, classes: int = 7, noise: float = 0.35, seed: int = 0) -> ProbeData:
    """Embeddings around random directions, as many for training as for testing."""
    generator = numpy.random.default_rng(seed)
    centre = generator.normal(size=(classes, 12))
    label = numpy.repeat(numpy.arange(classes), each)
    sides = [centre[label] + 12**0.5 * noise * generator.normal(size=(len(label), 12)) for _ in range(2)]
    train, test = (side / numpy.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    names = [str(number) for number in range(len(label))]
    ids = [f"c{number}" for number in range(classes)]
    return ProbeData(train, label, names, test, label, names, ids, "toy")
