"""The process that runs img2dataset (https://github.com/rom1504/img2dataset) with our PartDownloader.

img2dataset reads the links, divides them into parts and distributes these to processes of this machine, to Spark, or to
Ray. Workers on other machines need this package and the file system of the work folder. Parts are fetched by
download/download_worker.py; img2dataset's own downloader (a browser's user agent, four robots directives, no limits) is
not loaded. The ray distributor of 1.47 ignores failed parts and reports success where ray is not installed:
download/fetched_part.py checks the parts and retries.
"""

import functools
import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

from data_tools.download.download_worker import LINKS, PartDownloader
from data_tools.network.image_fetch import FetchSetting
from data_tools.work.workers import end_with_parent


class SilentLogger:
    """Replaces img2dataset's LoggerProcess, a process that prints totals and logs to wandb."""

    def __init__(self, *unused: Any) -> None:
        """Accept the arguments of the original."""
        self.done_shards: set[int] = set()

    def start(self) -> None:
        """Nothing to start."""

    def join(self) -> None:
        """Nothing to wait for."""

    def terminate(self) -> None:
        """Nothing to terminate."""


def open_spark(setting: FetchSetting) -> Any:
    """Start the session that img2dataset uses; its own would need 16 GB and serve a page on all interfaces."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("leam_mm").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.execution.arrow.pyspark.enabled", "false")
    if setting.cluster:
        return builder.master(setting.cluster).getOrCreate()
    builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    return builder.config("spark.driver.memory", "1g").master(f"local[{setting.processes}]").getOrCreate()


def open_ray(setting: FetchSetting) -> None:
    """Connect to a Ray head, or start one on this machine without dashboard and telemetry."""
    import ray

    if setting.cluster:
        ray.init(address=setting.cluster, log_to_driver=False)
    else:
        ray.init(num_cpus=setting.processes, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")


def download(setting: FetchSetting, scratch: Path) -> None:
    """Fetch all parts of ``setting.links``.

    Args:
        setting: Settings of the download.
        scratch: Working folder for img2dataset.
    """
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    # img2dataset imports these at start, for telemetry, re-encoding and tables in JSON. Without them it starts three
    # seconds faster and sends no telemetry. None makes an import fail, which webdataset expects of torch.
    sys.modules["torch"] = None  # type: ignore[assignment]
    unused = ["wandb", "albumentations"]
    if setting.distributor == "multiprocessing":
        unused.append("pandas")
    for name in unused:
        sys.modules[name] = types.ModuleType(name)
    if setting.distributor != "ray":
        sys.modules["ray"] = None  # type: ignore[assignment]
    program: Any = importlib.import_module("img2dataset.main")  # not img2dataset.main, which is a function
    program.Downloader = functools.partial(PartDownloader, setting)
    program.LoggerProcess = SilentLogger
    if setting.distributor == "pyspark":
        session = open_spark(setting)
    elif setting.distributor == "ray":
        open_ray(setting)
    program.download(
        url_list=setting.links,
        input_format="parquet",
        save_additional_columns=[name for name in LINKS.names if name != "url"],
        output_folder=str(scratch),
        output_format="dummy",
        processes_count=setting.processes,
        thread_count=setting.threads,
        number_sample_per_shard=setting.rows_per_part,
        max_shard_retry=2,
        user_agent_token=setting.agent_name,
        distributor=setting.distributor,
        incremental_mode="incremental",
    )
    if setting.distributor == "pyspark":
        session.stop()


if __name__ == "__main__":
    end_with_parent()
    download(FetchSetting(**json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
