"""Scripts of jobs: those of every profile equal the files in tests/golden, and pass bash -n and shellcheck.

After a change of template or profile, renew the files and read their difference before you commit it:

    LEAM_RENEW_GOLDEN=1 python -m pytest tests/test_launch_script.py && git diff tests/golden
"""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from leam_mm.errors import UserError
from leam_mm.launch.job import Job, parse_time, slurm_time
from leam_mm.launch.job_script import render, warning_seconds
from leam_mm.launch.job_settings import JobSettings, make_job
from leam_mm.planning.cluster_profile import profile_names

GOLDEN = Path(__file__).parent / "golden"
RECIPE = ("/repository/train.py", "fit", "--config", "configs/clip_vit_b16.yaml")
OVERLAY = ("--config", "/repository/configs/overlay_slurm.yaml", "--data.init_args.seed", "7")


def made(cluster: str, nodes: int = 2, **more: object) -> Job:
    """The job that a submission on a machine makes, without what depends on this one."""
    options = {name: more.pop(name) for name in ("chain", "account", "partition") if name in more}
    settings = JobSettings(cluster=cluster, nodes=nodes, time="12h", **{"account": "project_1", **options})
    job = make_job(settings, Path("/scratch/project/runs/a run"), (*RECIPE, *OVERLAY), **more)
    python = job.profile.software.command.needed()
    return replace(job, directory=Path("/repository"), python=python, commit="0" * 40, root=Path("/repository"))


def jobs() -> dict[str, Job]:
    """Name of the golden file -> job."""
    slices = (("--slice", "0/2"), ("--slice", "1/2"))
    rates = (("--seed_everything", "1", "--trainer.default_root_dir", "runs/0000"), ("--seed_everything", "it's 2"))
    words = ("/repository/data_tools/encode_latents.py", "--shards", "shards", "--output", "latents")
    programs = {f"{name}_program": made(name, 1, kind="program", one_task=True) for name in ("leonardo", "lumi_g")}
    return {
        **{name: made(name) for name in profile_names()},
        "lumi_g_one_node": made("lumi_g", 1, partition="small-g"),
        "leonardo_chain": made("leonardo", chain=3),
        "cpu_sweep": made("cpu", 1, array=rates, at_a_time=1),
        **{name: replace(job, words=words) for name, job in programs.items()},
        "cpu_slices": replace(made("cpu", 1, kind="program", array=slices), words=words),
    }


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAM_PYTHON", "LEAM_CONTAINER", "SBATCH_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", jobs())
def test_script_equals_the_golden_file(name: str) -> None:
    text, path = render(jobs()[name]), GOLDEN / f"job_{name}.sh"
    if os.environ.get("LEAM_RENEW_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path} is missing: see the docstring of this file"
    assert text == path.read_text(), "see the docstring of this file"


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.glob("job_*.sh")} == {f"job_{name}.sh" for name in jobs()}


@pytest.mark.parametrize("name", jobs())
def test_script_is_valid_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=render(jobs()[name]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_pass_shellcheck(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    for name, job in jobs().items():
        (tmp_path / f"{name}.sh").write_text(render(job))
    done = subprocess.run(["shellcheck", *sorted(tmp_path.glob("*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_hold_what_the_machine_needs() -> None:
    made_for = {name: render(job) for name, job in jobs().items()}
    for name, text in made_for.items():
        assert "export SRUN_CPUS_PER_TASK=" in text and "HF_HUB_OFFLINE=1" in text and "LEAM_JOB_END=" in text, name
        assert text.rstrip().endswith('exit "$code"'), name
    lumi, one = made_for["lumi_g"], made_for["lumi_g_one_node"]
    assert "--cpu-bind=mask_cpu:0x00fe000000000000," in lumi and "singularity run $LEAM_CONTAINER python" in lumi
    assert 'FI_MR_CACHE_MONITOR="userfaultfd"' in lumi and "NCCL_NET_GDR_LEVEL" not in lumi
    assert "--network=single_node_vni" in one and 'NCCL_DMABUF_ENABLE="0"' in one
    assert "single_node_vni" not in lumi and "NCCL_DMABUF_ENABLE" not in lumi
    jupiter, juwels = made_for["jupiter"], made_for["juwels_booster"]
    assert "MASTER_ADDR" not in jupiter and "head -n 1)i" in juwels
    assert 'NCCL_SOCKET_FAMILY="AF_INET"' in jupiter and "--gpu-bind=none" in jupiter
    assert 'TORCH_CUDNN_SDPA_ENABLED="0"' in jupiter and "GLOO_SOCKET_IFNAME" not in jupiter
    assert "#SBATCH --qos=acc_ehpc" in made_for["marenostrum5"] and "--cpus-per-task=20" in made_for["marenostrum5"]
    assert "scontrol requeue" not in made_for["leonardo_chain"] and "--no-requeue" in made_for["leonardo_chain"]
    assert "mask_cpu" not in made_for["lumi_g_program"] and "--cpus-per-task=56" in made_for["lumi_g_program"]
    assert "--signal=TERM@" in made_for["leonardo_program"] and "--signal=USR1@" in lumi


STUBS = """
srun() {{ [ "$1" != --ntasks-per-node=1 ] || return 0; return {code}; }}
scontrol() {{ echo "scontrol $*"; }}
scancel() {{ echo "scancel $*"; }}
squeue() {{ echo 2026-11-29T12:00:00; }}
module() {{ :; }}
SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n1 SLURM_JOB_NAME=name SLURM_NNODES=1
"""


def ended(job: Job, run: Path, code: int) -> tuple[int, str]:
    """Exit code and output of a script whose srun ends with a code; Slurm's commands are functions of bash."""
    run.mkdir(exist_ok=True)
    text = render(replace(job, run=run, directory=run))
    command = ["bash", "-c", STUBS.format(code=code) + text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_names_and_overrides_reach_the_command_unchanged(tmp_path: Path) -> None:
    """Bash runs nothing that stands in the name of the run folder, of its working folder, or in an override."""
    trap = tmp_path / "executed"
    run = tmp_path / f'Läufe "a" $HOME it\'s `touch {trap.name}` $(touch {trap.name}); # x'
    run.mkdir()
    options = ("--name", f"two words $(touch {trap})", f"--x=`touch {trap}`", "a\\ b\nc", "*")
    words = ("/repository/train.py", "fit", *options)
    for array in ((), ((f"$(touch {trap})", "it's; x"),)):
        job = replace(made("cpu", 1), run=run, directory=run, words=words, array=array, python="python")
        text = STUBS.format(code=0) + "SLURM_ARRAY_TASK_ID=0\nSLURM_ARRAY_JOB_ID=7\n"
        text += "srun() { printf '<%s>' \"$@\"; return 76; }\n" + render(job)
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 76 and not done.stderr, done.stderr
        assert "<python>" + "".join(f"<{word}>" for word in (*words, *(array[0] if array else ()))) in done.stdout
        assert not list(tmp_path.rglob(trap.name))
    assert [path.name for path in run.iterdir()] == ["failures-7-0"]


@pytest.mark.parametrize("code", [0, 1, 2, 75, 76, 137])
def test_script_ends_with_the_code_of_srun_and_requeues_only_what_can_continue(tmp_path: Path, code: int) -> None:
    found, output = ended(made("cpu"), tmp_path / "run", code)
    assert found == code and f"job 7, exit code {code}" in output
    assert ("scontrol requeue 7" in output) == (code in (75, 76, 137)), output


def test_a_dead_rank_is_started_again_three_times_only(tmp_path: Path) -> None:
    job, run = made("cpu"), tmp_path / "run"
    again = ["scontrol requeue" in ended(job, run, 76)[1] for _ in range(4)]
    assert again == [True, True, True, False]
    assert "failed more than 3 times" in ended(job, run, 76)[1]
    assert "scontrol requeue" in ended(job, run, 75)[1]  # a saved checkpoint is progress
    assert "scontrol requeue" in ended(job, run, 76)[1]


def test_a_run_that_was_stopped_by_hand_is_not_requeued(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "stopped").touch()
    code, output = ended(made("cpu"), run, 75)
    assert code == 75 and "scontrol" not in output and "stopped by hand" in output


def test_a_chain_goes_on_after_75_and_is_cancelled_when_the_run_is_over(tmp_path: Path) -> None:
    job = made("leonardo", chain=3)
    assert "scancel" not in ended(job, tmp_path / "run", 75)[1]
    for code in (0, 2):
        assert "scancel --name=name --user=" in ended(job, tmp_path / "run", code)[1]


def test_times() -> None:
    given = {"24h": 86400, "90m": 5400, "1d12h": 129600, "1-12:00:00": 129600, "12:00:00": 43200, "30": 1800}
    assert {text: parse_time(text) for text in given} == given
    assert slurm_time(129600) == "1-12:00:00"
    for text in ("", "soon", "-3h", "30s", "0"):
        with pytest.raises(UserError, match="give at least a minute"):
            parse_time(text)
    assert warning_seconds(made("cpu")) == 300 and warning_seconds(replace(made("cpu"), seconds=600)) == 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"account": "a\n#SBATCH --nodes=9"}, "--account is"),
        ({"partition": "a b"}, "--partition is"),
        ({"run": Path("/runs/100%")}, "give a run folder without it"),
    ],
)
def test_what_would_break_a_line_for_sbatch_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(made("cpu"), **change)
