"""A sample whose json is damaged ends withdrawals and descriptions in one line, with a cure that works.

A withdrawal that passed over it might pass over what it must withdraw, and numbers without it would not be those of the
data set.
"""

from pathlib import Path

import pytest
from toys.published import withdraw
from toys.shards import small_sample, write_samples

from data_tools import describe_dataset, vet_shards
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

RULES = "rules:\n- class_path: data_tools.vetting.exact_duplicates.ExactDuplicates\n"
LINE = r"sample 000002: its json cannot be used \(.*\): leave it out by vetting the folder \("


def test_a_damaged_json_is_named_and_vetting_cures_it(tmp_path: Path) -> None:
    samples = [small_sample(number) for number in range(5)]
    samples[2]["json"] = samples[2]["json"][:-3]
    shards = write_samples(tmp_path / "shards", samples, 5)
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    words = ("--url", "http://pictures.example/1.jpg", "--apply", "--unsigned")
    with pytest.raises(UserError, match=LINE):
        withdraw("--shards", shards, *words)
    with pytest.raises(UserError, match=LINE):
        describe_dataset.main(["--shards", str(shards), "--output", str(tmp_path / "description")])
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    (tmp_path / "rules.yaml").write_text(RULES)
    vetted = tmp_path / "vetted"
    vetting = ["--shards", str(shards), "--rules", str(tmp_path / "rules.yaml"), "--output", str(vetted)]
    vet_shards.main([*vetting, "--materialise", "--processes", "1", "--max-errors", "0.5"])
    withdraw("--shards", vetted, *words)
    assert [key for key, _ in read_samples(vetted)] == ["000000", "000003", "000004"]
    describe_dataset.main(["--shards", str(vetted), "--output", str(tmp_path / "description")])
