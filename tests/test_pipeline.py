import itertools
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from leam_mm.callbacks import energy_meter
from leam_mm.callbacks.energy_meter import EnergyReading
from leam_mm.errors import UserError
from leam_mm.pipeline import main
from leam_mm.pipeline_cost import Cost
from leam_mm.pipeline_file import read_pipeline
from leam_mm.pipeline_stages import StageRunner


def stage(run: Path, name: str, code: str = "", **more: Any) -> dict[str, Any]:
    """A stage that appends a line to NAME.txt, so that its runs can be counted."""
    made = run / f"{name}.txt"
    return {
        "name": name,
        "command": f"python -c \"open(r'{made}', 'a').write('x'); {code}\"",
        "makes": [str(made)],
        **more,
    }


def pipeline_file(folder: Path, *stages: dict[str, Any], **more: Any) -> Path:
    file = folder / "pipeline.yaml"
    (folder / "run").mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({"run": str(folder / "run"), "title": "Two stages", "stages": list(stages), **more}))
    return file


def run_file(file: Path) -> list[dict[str, Any]]:
    return StageRunner(read_pipeline(file)).run()


def runs(folder: Path, name: str) -> str:
    return (folder / "run" / f"{name}.txt").read_text()


def test_stages_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    file = pipeline_file(tmp_path, stage(run, "first"), stage(run, "second"))
    records = run_file(file)
    assert [record["name"] for record in records] == ["first", "second"]
    assert all(record["seconds"] > 0 and record["energy"]["source"] for record in records)
    capsys.readouterr()
    assert run_file(file) == records
    assert capsys.readouterr().out.count("skipped") == 2
    assert runs(tmp_path, "first") == runs(tmp_path, "second") == "x"


def test_stage_without_its_input_is_skipped_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, needed = tmp_path / "run", tmp_path / "run" / "needed.txt"
    makes_it = stage(run, "first", f"open(r'{needed}', 'w').write('x')") | {"makes": [str(needed)]}
    rest = [stage(run, "second", only_with=str(needed)), stage(run, "third")]
    assert [record["name"] for record in run_file(pipeline_file(tmp_path, makes_it, *rest))] == [
        *("first", "second", "third")
    ]
    file = pipeline_file(tmp_path, stage(run, "first"), *rest)
    needed.unlink()
    capsys.readouterr()
    assert [record["name"] for record in run_file(file)] == ["first", "third"]
    assert f"2/3 second skipped: there is no {needed}" in capsys.readouterr().out
    assert not (run / "second.txt").exists() and not (run / "stages" / "second.json").exists()
    assert runs(tmp_path, "third") == "x"


def test_changed_command_runs_again_with_all_that_follow(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages = [stage(run, name) for name in ("first", "second", "third")]
    run_file(pipeline_file(tmp_path, *stages))
    stages[1]["command"] = stages[1]["command"].replace("'x'", "'y'")
    run_file(pipeline_file(tmp_path, *stages))
    # The first is skipped; the output of the changed one was removed before it ran again.
    assert [runs(tmp_path, name) for name in ("first", "second", "third")] == ["x", "y", "x"]
    assert len(json.loads((run / "stages" / "third.json").read_text())["fingerprint"]) == 64


def test_changed_recipe_runs_again(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text("a: 1\n")
    made = run / "copy.txt"
    code = f"import shutil, sys; shutil.copy(sys.argv[1], r'{made}')"
    stages = [
        stage(run, "before"),
        {"name": "copy", "command": f'python -c "{code}" {recipe}', "makes": [str(made)]},
        stage(run, "after"),
    ]
    run_file(pipeline_file(tmp_path, *stages))
    times = {name: (run / "stages" / f"{name}.json").stat().st_mtime_ns for name in ("before", "copy", "after")}
    recipe.write_text("a: 2\n")
    run_file(pipeline_file(tmp_path, *stages))
    assert made.read_text() == "a: 2\n"
    again = {name: (run / "stages" / f"{name}.json").stat().st_mtime_ns for name in times}
    assert [again[name] != times[name] for name in ("before", "copy", "after")] == [False, True, True]


def test_removed_output_is_made_again(tmp_path: Path) -> None:
    file = pipeline_file(tmp_path, stage(tmp_path / "run", "first"))
    run_file(file)
    (tmp_path / "run" / "first.txt").unlink()
    run_file(file)
    assert runs(tmp_path, "first") == "x"


def test_failing_stage_names_itself_and_keeps_the_earlier(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flag = tmp_path / "fixed"
    check = f"import os, sys; sys.exit(0 if os.path.exists(r'{flag}') else 3)"
    file = pipeline_file(tmp_path, stage(run, "first"), stage(run, "second", check))
    with pytest.raises(UserError, match=r"stage second ended with exit code 3; fix .* same command again"):
        run_file(file)
    assert (run / "stages" / "first.json").is_file() and not (run / "stages" / "second.json").exists()
    flag.touch()
    run_file(file)
    # The same stage continues with its output (training resumes); only a changed one starts anew.
    assert runs(tmp_path, "first") == "x" and runs(tmp_path, "second") == "xx"
    assert not list((run / "stages").glob("*.begun")) and not list((run / "stages").glob("*.tmp*"))


def test_attempts_of_a_stage_are_added_up(tmp_path: Path) -> None:
    run, flag = tmp_path / "run", tmp_path / "fixed"
    check = f"import os, sys, time; time.sleep(0.4); sys.exit(0 if os.path.exists(r'{flag}') else 3)"
    file = pipeline_file(tmp_path, stage(run, "slow", check))
    with pytest.raises(UserError):
        run_file(file)
    first = json.loads((run / "stages" / "slow.begun").read_text())["cost"]
    assert first["attempts"] == 1 and first["seconds"] >= 0.4
    flag.touch()
    (record,) = run_file(file)
    assert record["attempts"] == 2 and record["seconds"] >= first["seconds"] + 0.4
    assert record["cpu_seconds"] > first["cpu_seconds"]


def test_killed_pipeline_has_recorded_the_cost_of_its_stage(tmp_path: Path) -> None:
    run, flag = tmp_path / "run", tmp_path / "fixed"
    wait = f"import os, time; [time.sleep(0.1) for _ in range(600) if not os.path.exists(r'{flag}')]"
    file = pipeline_file(tmp_path, stage(run, "slow", wait))
    code = "import leam_mm.pipeline as c, leam_mm.pipeline_stages as s, sys; s.HEARTBEAT = 0.2; c.main([sys.argv[1]])"
    program = subprocess.Popen([sys.executable, "-c", code, str(file)])
    note = run / "stages" / "slow.begun"
    try:
        for _ in range(600):
            seconds = json.loads(note.read_text()).get("cost", {}).get("seconds", 0) if note.exists() else 0
            if seconds > 0.5:
                break
            time.sleep(0.1)
    finally:
        program.kill()
        program.wait()
        flag.touch()
    (record,) = run_file(file)
    assert record["attempts"] == 2 and record["seconds"] > seconds > 0.5


@pytest.mark.parametrize(("parts", "total"), [((2.0, 3.0), 5.0), ((None, 3.0), None), ((2.0, None), None)])
def test_sum_with_an_unmeasured_part_is_not_measured(
    parts: tuple[float | None, float | None], total: float | None
) -> None:
    both: dict[str, Any] = {}
    for part in parts:
        cost = Cost(1.0, 1.0, 0.5, stolen_cpu_seconds=part, joules=part, source="a counter")
        both = cost.total(both)
    assert both["energy"] == {"joules": total, "source": "a counter" if total else "not measured"}
    assert both["stolen_cpu_seconds"] == total
    assert (both["seconds"], both["cpu_seconds"], both["attempts"]) == (2.0, 1.0, 2)


def test_missing_program_is_named(tmp_path: Path) -> None:
    file = pipeline_file(tmp_path, {"name": "odd", "command": "no-such-program --x", "makes": []})
    with pytest.raises(UserError, match=r"stage odd: no-such-program cannot be started"):
        run_file(file)


@pytest.mark.parametrize("path", ["elsewhere.txt", "run/../elsewhere", "run", "/etc/passwd"])
def test_paths_outside_the_run_folder_are_refused(tmp_path: Path, path: str) -> None:
    file = pipeline_file(tmp_path, {"name": "a", "command": "python -c 1", "makes": [str(tmp_path / path)]})
    with pytest.raises(UserError, match=r"stage a makes .* which lies outside"):
        read_pipeline(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [1", "is no pipeline file"),
        ("- a", "is no pipeline file"),
        ("run: r\ntitle: t\n", "is no pipeline file"),
        ("run: r\ntitle: t\nstages: [{name: a, command: c, makes: [], speed: 3}]\n", "speed"),
        ("run: r\ntitle: t\nstages: []\nextra: 1\n", "unknown key 'extra'"),
        ("run: r\ntitle: t\nstages: [{name: ../a, command: c, makes: []}]\n", "name of one word"),
        ("run: r\ntitle: t\nstages: [{name: a, command: '', makes: []}]\n", "a command"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_pipeline(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="does not exist"):
        read_pipeline(tmp_path / "other.yaml")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fetching(run: Path, port: int) -> str:
    code = f"import urllib.request as u; u.urlretrieve('http://127.0.0.1:{port}/page.txt', r'{run / 'got.txt'}')"
    return f'python -c "{code}"'


def test_served_folder_is_there_while_the_stage_runs(tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    run.mkdir()
    (run / "page.txt").write_text("hello")
    served = {"folder": str(run), "port": port}
    made = {"name": "fetch", "command": fetching(run, port), "makes": [str(run / "got.txt")], "serve": served}
    run_file(pipeline_file(tmp_path, made))
    assert (run / "got.txt").read_text() == "hello"
    with socket.socket() as probe:  # and gone afterwards
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        made = stage(tmp_path / "run", "first", serve={"folder": str(tmp_path), "port": port})
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is taken"):
            run_file(pipeline_file(tmp_path, made))


def test_main_writes_summary_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(pipeline_file(tmp_path, stage(tmp_path / "run", "first")))])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seconds"].keys() == {"first"} and summary["zero_shot"] == {}
    joules, source = summary["energy"]["by_stage"]["first"].values()
    assert (joules is None) == (summary["energy"]["joules"] is None) and source
    page = (tmp_path / "run" / "report.html").read_text()
    output = capsys.readouterr().out
    assert "Two stages" in page and "report.html" in output and "release" not in output  # there is none


def test_emissions_follow_the_factors_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joules = itertools.count(0.0, 3.6e6)
    monkeypatch.setattr(
        energy_meter.EnergyMeter, "read", lambda self: EnergyReading(next(joules), "x", "node", 1.0, 0.5)
    )
    file = pipeline_file(tmp_path, stage(tmp_path / "run", "first"))
    (plain,) = run_file(file)
    assert plain["carbon"]["location_grams"] is None
    file.write_text(file.read_text() + "\nenergy: {grams_per_kwh: 100, pue: 1.5, source: a table}\n")
    (given,) = run_file(file)  # the finished stage is not repeated
    assert given["attempts"] == plain["attempts"] and given["carbon"]["market_grams"] is None
    assert given["carbon"]["location_grams"] == pytest.approx(150.0 * given["energy"]["joules"] / 3.6e6)
    assert json.loads((tmp_path / "run/stages/first.json").read_text())["carbon"] == given["carbon"]
    file.write_text(file.read_text().replace("pue", "puee"))
    with pytest.raises(UserError, match=r"unknown key energy\.puee"):
        run_file(file)


def test_python_is_the_interpreter_in_use(tmp_path: Path) -> None:
    made = tmp_path / "run" / "who.txt"
    code = f"import sys; open(r'{made}', 'w').write(sys.executable)"
    run_file(pipeline_file(tmp_path, {"name": "who", "command": f'python -c "{code}"', "makes": [str(made)]}))
    assert made.read_text() == sys.executable


def test_variables_stay_one_word_and_are_checked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    each = {"name": "note", "command": f'python -c "{code}" ${{run}}/note.txt ${{word}}', "makes": ["${run}/note.txt"]}
    variables = {"run": str(run), "word": None}
    file = pipeline_file(tmp_path, each, variables=variables)
    file.write_text(file.read_text().replace(f"run: {run}\nstages", "run: ${run}\nstages"))
    with pytest.raises(UserError, match="needs a value for word: give --set word=VALUE"):
        read_pipeline(file)
    with pytest.raises(UserError, match="has no variable 'ward'; there are run, word"):
        read_pipeline(file, {"ward": "x"})
    with pytest.raises(UserError, match="--set word: give NAME=VALUE"):
        main([str(file), "--set", "word"])
    StageRunner(read_pipeline(file, {"word": "two words; and 'more'"})).run()
    assert (run / "note.txt").read_text() == "two words; and 'more'"
    assert read_pipeline(file, {"word": "x", "run": str(tmp_path / "other run")}).run == tmp_path / "other run"


def test_stage_runs_again_when_its_input_changes(tmp_path: Path) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    images.mkdir()
    (images / "a.txt").write_text("a")
    file = pipeline_file(tmp_path, stage(run, "first"), stage(run, "second", reads=[str(images)]))
    run_file(file)
    run_file(file)
    before = json.loads((run / "stages" / "second.json").read_text())["fingerprint"]
    (images / "b.txt").write_text("b")
    run_file(file)
    assert runs(tmp_path, "first") == runs(tmp_path, "second") == "x"  # the second's output was removed and made again
    assert json.loads((run / "stages" / "second.json").read_text())["fingerprint"] != before


def test_stages_run_without_torch() -> None:
    code = "import leam_mm.pipeline, sys; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert found.stdout == "[]\n", found.stderr
