"""Jobs of vet_shards, one for each shard and pass; none is done twice.

A job's folder appears when the job is finished, so a kill at any time leaves nothing incomplete. Which process does a
job, and in which order, changes no byte.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from data_tools.samples.image_repair import encode_image
from data_tools.vetting.read_samples import IMAGES
from data_tools.vetting.shard_findings import ShardTask, read_changes, vet_shard
from data_tools.vetting.vetting_rule import VettingRule
from leam_mm.data.image_file import open_image
from leam_mm.data.shard_index import ShardFolder, ShardWriter


@dataclass(frozen=True)
class VettingJob:
    """The work on one shard.

    Args:
        shards: Folder of the shard.
        number: Number of the shard.
        output: Folder that appears when the job is done.
        task: What to do; without rules the samples are written.
    """

    shards: Path
    number: int
    output: Path
    task: ShardTask


@dataclass
class VettingState:
    """What a process needs for its jobs.

    Args:
        rules: All rules, in order.
        folders: Shard folders that it has opened.
    """

    rules: list[VettingRule]
    folders: dict[Path, ShardFolder] = field(default_factory=dict)


def prepare_worker(rules: list[VettingRule]) -> VettingState:
    """Return the state of a new worker process."""
    pa.set_cpu_count(1)  # the processes already share the cores
    return VettingState(rules)


def do_job(state: VettingState, job: VettingJob) -> None:
    """Vet a shard, or write its samples to a new one."""
    if job.shards not in state.folders:
        state.folders[job.shards] = ShardFolder(job.shards)
    if job.task.steps:
        vet_shard(state.folders[job.shards], job.number, state.rules, job.task, job.output)
    else:
        write_shard(state.folders[job.shards], job)


def write_shard(folder: ShardFolder, job: VettingJob) -> None:
    """Write the kept samples of a shard with the changes of the rules; unchanged members keep their bytes."""
    changes, rows = read_changes(job.task), job.task.rows or []
    with ShardWriter(job.output, len(rows), card=False) as writer, folder.open_shard(job.number) as shard:
        for row in rows:
            members = shard.members(row)
            change = changes.get(row, {"record": {}, "content": None})
            if change["record"]:
                record = json.loads(members["json"]) | change["record"]
                members["json"] = json.dumps(record, ensure_ascii=False, sort_keys=True).encode()
            if change["content"] is not None:
                kind = next(name for name in IMAGES if name in members)
                with open_image(change["content"], ("PNG",)) as image:
                    members[kind] = encode_image(image, kind)
            writer.write(shard.keys[row], members)
