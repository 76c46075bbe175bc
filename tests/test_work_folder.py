"""data_tools.work.work_folder: one run at a time, the same settings only, no leftovers."""

import json

import pytest

from data_tools.work.work_folder import compare_settings, open_work_folder
from leam_mm import run_lock
from leam_mm.errors import UserError


def test_a_folder_continues_with_the_same_settings_only(tmp_path):
    work = tmp_path / "w"
    with open_work_folder(work, {"max_bytes": 5, "sides": (1, 2)}, {"rows": 20}) as chosen:
        assert chosen == {"rows": 20}
    with open_work_folder(work, {"max_bytes": 5, "sides": (1, 2)}, {"rows": 99}) as chosen:
        assert chosen == {"rows": 20}  # the first run's choice
    assert json.loads((work / "fingerprint.json").read_text()) == {"max_bytes": 5, "sides": [1, 2], "rows": 20}
    with pytest.raises(UserError, match=r"another max_bytes \(5, now 6\)"), open_work_folder(work, {"max_bytes": 6}):
        pass


def test_nested_settings_are_named_and_long_values_cut():
    compare_settings({"a": 1, "other": 2}, {"a": 1}, "folder", "stop")
    with pytest.raises(UserError, match=r"folder was started with another agent \('x', now 'y'\): stop"):
        compare_settings({"setting": {"agent": "x"}}, {"setting": {"agent": "y"}}, "folder", "stop")
    with pytest.raises(UserError) as caught:
        compare_settings({"a": "x" * 1000}, {"a": "y" * 1000}, "folder", "stop")
    assert len(str(caught.value)) < 250


def test_jobs_share_a_folder_and_the_last_has_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.1)
    work = tmp_path / "w"
    with open_work_folder(work, {}, piece=(0, 3)), open_work_folder(work, {}, piece=(1, 3)):
        for piece in ((0, 1), (1, 3)):
            with pytest.raises(UserError, match="in use by another run"), open_work_folder(work, {}, piece=piece):
                pass
    with open_work_folder(work, {}), pytest.raises(UserError, match="in use by another run"):
        open_work_folder(work, {}).__enter__()


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    work = tmp_path / "w"
    (work / "raw" / "part.tmp-123").mkdir(parents=True)
    (work / "raw" / "part").touch()
    (work / "sum.json.tmp-123").touch()
    with open_work_folder(work, {}, piece=(0, 2)):
        assert (work / "sum.json.tmp-123").exists()  # of another job perhaps, which is still at work
    with open_work_folder(work, {}):
        assert sorted(path.name for path in work.glob("**/*.tmp-*")) == []
        assert (work / "raw" / "part").exists()
