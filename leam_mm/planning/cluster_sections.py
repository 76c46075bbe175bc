"""Sections of a cluster profile: which facts there are, with their types, units and ranges.

A field that a profile leaves out is not known. Devices are what Slurm and torch count: a GCD of an MI250X is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from leam_mm.command_line import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range, Share
from leam_mm.planning.fact import Fact, not_found


@dataclass(frozen=True)
class Band:
    """Low, middle and high estimate of a share.

    Args:
        low: Lowest, in [0, 1].
        mid: Middle, in [low, high].
        high: Highest, in [0, 1].
    """

    low: Share
    mid: Share
    high: Share


@dataclass(frozen=True)
class Queue:
    """Limits of one partition or quality of service beside the default one.

    Args:
        name: Name for sbatch.
        kind: ``partition`` or ``qos``, the option of sbatch that takes the name.
        max_hours: Longest job, in hours; None if not known.
        max_nodes: Largest job, in nodes; None if not known.
        min_nodes: Smallest job, in nodes; None if not known.
    """

    name: str
    kind: Literal["partition", "qos"]
    max_hours: PositiveFloat | None = None
    max_nodes: PositiveInt | None = None
    min_nodes: PositiveInt | None = None


@dataclass(frozen=True)
class Gpu:
    """One device.

    Args:
        vendor: ``nvidia``, ``amd`` or ``none``.
        model: Name.
        per_node: Devices in a node, 0 for CPU nodes.
        peak_tflops: Dense bf16 peak of a device, in TFLOP/s.
        memory_gb: Memory of a device, in GB.
        watts: Power limit of a device, in W.
    """

    vendor: Fact[Literal["nvidia", "amd", "none"]] = field(default_factory=not_found)
    model: Fact[str] = field(default_factory=not_found)
    per_node: Fact[NonNegativeInt] = field(default_factory=not_found)
    peak_tflops: Fact[PositiveFloat] = field(default_factory=not_found)
    memory_gb: Fact[PositiveFloat] = field(default_factory=not_found)
    watts: Fact[PositiveFloat] = field(default_factory=not_found)


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        cores: Physical cores.
        usable_cores: Cores that jobs may use.
        count: Nodes of this kind in the machine.
        watts: Mean power of a busy node, in W, at its inlet, without cooling of the site.
        intra_gbytes_per_s: Bandwidth between two devices of a node, in GB/s and direction.
        inter_gbytes_per_s: Network bandwidth of a node, in GB/s and direction.
        mtbf_hours: Mean time between failures of one node, in hours.
    """

    cores: Fact[PositiveInt] = field(default_factory=not_found)
    usable_cores: Fact[PositiveInt] = field(default_factory=not_found)
    count: Fact[PositiveInt] = field(default_factory=not_found)
    watts: Fact[PositiveFloat] = field(default_factory=not_found)
    intra_gbytes_per_s: Fact[PositiveFloat] = field(default_factory=not_found)
    inter_gbytes_per_s: Fact[PositiveFloat] = field(default_factory=not_found)
    mtbf_hours: Fact[PositiveFloat] = field(default_factory=not_found)


@dataclass(frozen=True)
class Site:
    """The computing centre: energy, carbon and prices.

    Args:
        country: ISO 3166 code of two letters.
        pue: Power usage effectiveness: energy of the site per energy of its computers, at least 1.
        grid_grams_per_kwh: Life-cycle emissions of the country's grid, in g CO2e/kWh (location-based).
        market_grams_per_kwh: Emissions of the electricity that the site buys, in g CO2e/kWh (market-based).
        euro_per_kwh: Price of electricity, in euro/kWh.
        euro_per_gpu_hour: Price of a device hour, in euro.
    """

    country: Fact[str] = field(default_factory=not_found)
    pue: Fact[Annotated[float, Range(least=1, most=5)]] = field(default_factory=not_found)
    grid_grams_per_kwh: Fact[NonNegativeFloat] = field(default_factory=not_found)
    market_grams_per_kwh: Fact[NonNegativeFloat] = field(default_factory=not_found)
    euro_per_kwh: Fact[NonNegativeFloat] = field(default_factory=not_found)
    euro_per_gpu_hour: Fact[NonNegativeFloat] = field(default_factory=not_found)


@dataclass(frozen=True)
class Storage:
    """File systems.

    Args:
        read_gbytes_per_s: Reading from scratch with many nodes, in GB/s.
        write_gbytes_per_s: Writing to scratch with many nodes, in GB/s.
        inode_limit: Files that a project may have on scratch.
        scratch: Path of scratch; may hold variables of the site's shell.
        tmp_is_ram: Whether /tmp of a compute node is in memory and counts against the job.
        tmp_gb: Size of /tmp, in GB.
        login_only_paths: Paths that login nodes see and compute nodes do not.
    """

    read_gbytes_per_s: Fact[PositiveFloat] = field(default_factory=not_found)
    write_gbytes_per_s: Fact[PositiveFloat] = field(default_factory=not_found)
    inode_limit: Fact[PositiveInt] = field(default_factory=not_found)
    scratch: Fact[str] = field(default_factory=not_found)
    tmp_is_ram: Fact[bool] = field(default_factory=not_found)
    tmp_gb: Fact[PositiveFloat] = field(default_factory=not_found)
    login_only_paths: Fact[tuple[str, ...]] = field(default_factory=not_found)


@dataclass(frozen=True)
class Slurm:
    """Options of sbatch and srun, and limits of jobs.

    Args:
        partition: Default partition.
        qos: Default quality of service.
        account_required: Whether sbatch needs --account.
        max_hours: Longest job of the default partition and QoS, in hours.
        max_nodes: Largest job of the default partition and QoS, in nodes.
        queues: Other partitions and QoS, by name.
        whole_nodes: Whether a job gets whole nodes.
        gpu_option: How a job asks for devices: ``gres`` (--gres=gpu:N), ``gpus-per-node``, or ``none``.
        tasks_per_node: Tasks in a node: one a device.
        cpus_per_task: Cores of each task, loader workers included.
        requeue: Whether a job may requeue itself.
        licences: Value of --licenses, such as the file systems that the job uses.
        exclude_nodes: Value of --exclude: nodes known to be bad.
        extra: Further options of sbatch.
        srun_options: Further options of srun.
    """

    partition: Fact[str] = field(default_factory=not_found)
    qos: Fact[str] = field(default_factory=not_found)
    account_required: Fact[bool] = field(default_factory=not_found)
    max_hours: Fact[PositiveFloat] = field(default_factory=not_found)
    max_nodes: Fact[PositiveInt] = field(default_factory=not_found)
    queues: Fact[tuple[Queue, ...]] = field(default_factory=not_found)
    whole_nodes: Fact[bool] = field(default_factory=not_found)
    gpu_option: Fact[Literal["gres", "gpus-per-node", "none"]] = field(default_factory=not_found)
    tasks_per_node: Fact[PositiveInt] = field(default_factory=not_found)
    cpus_per_task: Fact[PositiveInt] = field(default_factory=not_found)
    requeue: Fact[bool] = field(default_factory=not_found)
    licences: Fact[str] = field(default_factory=not_found)
    exclude_nodes: Fact[str] = field(default_factory=not_found)
    extra: Fact[tuple[str, ...]] = field(default_factory=not_found)
    srun_options: Fact[tuple[str, ...]] = field(default_factory=not_found)


@dataclass(frozen=True)
class Network:
    """The network between the nodes.

    Args:
        socket_interface: NCCL_SOCKET_IFNAME.
        gloo_interface: GLOO_SOCKET_IFNAME.
        ipv6: Whether nodes have IPv6.
        master_suffix: What to append to the first node's name so that it resolves to the fast network.
        second_group_ok: Whether a second process group works.
        single_node_network: Value of --network for jobs of one node.
        internet: Whether compute nodes reach the internet.
    """

    socket_interface: Fact[str] = field(default_factory=not_found)
    gloo_interface: Fact[str] = field(default_factory=not_found)
    ipv6: Fact[bool] = field(default_factory=not_found)
    master_suffix: Fact[str] = field(default_factory=not_found)
    second_group_ok: Fact[bool] = field(default_factory=not_found)
    single_node_network: Fact[str] = field(default_factory=not_found)
    internet: Fact[bool] = field(default_factory=not_found)


@dataclass(frozen=True)
class Software:
    """How Python is started.

    Args:
        modules: Commands that load the site's modules, one a line of the script.
        container: Container image; may hold wildcards, of which the last match is taken.
        command: Words in front of ``train.py``, such as ``python``; ``$LEAM_CONTAINER`` is the image.
        exports: Environment variables of every job.
        single_node_exports: Environment variables of jobs of one node.
        attention_exports: Environment variables that switch attention kernels.
        node_folders: Folders to make on each node before the start.
        cpu_bind: Value of srun's --cpu-bind.
    """

    modules: Fact[tuple[str, ...]] = field(default_factory=not_found)
    container: Fact[str] = field(default_factory=not_found)
    command: Fact[str] = field(default_factory=not_found)
    exports: Fact[Mapping[str, str]] = field(default_factory=not_found)
    single_node_exports: Fact[Mapping[str, str]] = field(default_factory=not_found)
    attention_exports: Fact[Mapping[str, str]] = field(default_factory=not_found)
    node_folders: Fact[tuple[str, ...]] = field(default_factory=not_found)
    cpu_bind: Fact[str] = field(default_factory=not_found)


@dataclass(frozen=True)
class Mfu:
    """Model FLOPs utilization that runs reach: useful FLOP/s per peak FLOP/s.

    Args:
        contrastive: Training of CLIP encoders.
        generator: Training of latent-diffusion generators.
    """

    contrastive: Fact[Band] = field(default_factory=not_found)
    generator: Fact[Band] = field(default_factory=not_found)
