"""Time of a training step on 1 to thousands of nodes: computation, stragglers, collectives, reading, failures.

A step waits for the slowest device, for the part of the gradient's all-reduce that does not fit beside the backward
pass, and, for contrastive losses, for the features of all other devices. Reading can be the roof of all of it. Failures
and saves then take their share of the time (``checkpoint_interval``). All results are estimates.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from leam_mm.errors import UserError
from leam_mm.planning.checkpoint_interval import FailureModel, best_interval, goodput

BACKWARD_SHARE = 2 / 3  # of a step's computation: the backward pass costs two forward passes
# Assumed, unless the machine says otherwise; docs/planning.md names what each was compared with.
NETWORK_EFFICIENCY = 0.7  # share of the links' nominal bandwidth that collectives reach
LATENCY_SECONDS = 10e-6  # of one message between two nodes
BUCKET_BYTES = 25 * 2**20  # of DistributedDataParallel: the last bucket cannot overlap with the backward pass
# Spread of the step times of equal devices (standard deviation of their logarithm), fitted on one published point:
# CLAP HTSAT-tiny on 32 nodes of JUPITER, see published_scaling.py.
STRAGGLER_SIGMA = 0.0327
DRAWS = 4096


@dataclass(frozen=True)
class Workload:
    """One training step, whatever machine it runs on.

    Args:
        flops_per_sample: Operations of forward and backward pass of one sample, recomputation included.
        gradient_bytes: Bytes of the gradients that all devices add up in each step.
        gathered_bytes_per_sample: Bytes of features that each sample sends to all other devices; 0 without a
            contrastive loss.
        read_bytes_per_sample: Bytes of one sample in the shards.
        checkpoint_bytes: Bytes of a checkpoint.
        sharded: Parameters and optimizer states are sharded over the devices (FSDP), which gathers parameters in both
            passes: one and a half times the traffic of an all-reduce.
    """

    flops_per_sample: float
    gradient_bytes: float = 0.0
    gathered_bytes_per_sample: float = 0.0
    read_bytes_per_sample: float = 0.0
    checkpoint_bytes: float = 0.0
    sharded: bool = False


@dataclass(frozen=True)
class Machine:
    """Nodes of a cluster. A value of None is not known and bounds nothing.

    Args:
        devices_per_node: GPUs (of MI250X: dies) of a node, or processes on CPUs.
        flops_per_device: Sustained operations per second of one device in this workload: peak times MFU.
        intra_bytes_per_second: Bandwidth of one device to the others of its node, one direction.
        inter_bytes_per_second: Bandwidth of a node to the network, one direction, all its adapters together.
        read_bytes_per_second: Bandwidth of the storage, for all nodes together.
        write_bytes_per_second: Bandwidth with which one checkpoint is written.
        load_samples_per_second: Samples that the loader of one node decodes per second.
        node_mtbf_hours: Mean time between failures of one node, in hours.
        restart_seconds: Time from a failure to the first repeated step.
        overhead_seconds: Time of a step that does not depend on the batch.
        straggler_sigma: Standard deviation of the logarithm of a device's step time.
        network_efficiency: Share of the nominal bandwidth that collectives reach, in (0, 1].
        latency_seconds: Latency of one message between nodes.
        overlap: Share of the backward pass beside which the all-reduce can run, in [0, 1].
    """

    devices_per_node: int
    flops_per_device: float
    intra_bytes_per_second: float | None = None
    inter_bytes_per_second: float | None = None
    read_bytes_per_second: float | None = None
    write_bytes_per_second: float | None = None
    load_samples_per_second: float | None = None
    node_mtbf_hours: float | None = None
    restart_seconds: float = 600.0
    overhead_seconds: float = 0.0
    straggler_sigma: float = STRAGGLER_SIGMA
    network_efficiency: float = NETWORK_EFFICIENCY
    latency_seconds: float = LATENCY_SECONDS
    overlap: float = 1.0


@dataclass(frozen=True)
class ScalingPoint:
    """Estimate for one number of nodes.

    Args:
        nodes: Nodes.
        devices: Devices of all nodes.
        batch: Global batch in samples.
        seconds: Mean time of a step.
        compute_seconds: Computation of the mean device.
        straggler_seconds: Wait for the slowest device.
        allreduce_seconds: Part of the gradients' all-reduce that does not overlap.
        gather_seconds: Exchange of features.
        loading_seconds: Time by which reading or decoding is slower than all of the above.
        samples_per_second: Global rate between saves and failures.
        efficiency: Rate per device, relative to that of the reference number of nodes.
        checkpoint_seconds: Best work between two saves, in seconds; infinite if no failures are known.
        goodput: Share of the time in which training proceeds, with saves and failures.
        goodput_known: False if the save time or the failures are not known; ``goodput`` is then 1.
    """

    nodes: int
    devices: int
    batch: int
    seconds: float
    compute_seconds: float
    straggler_seconds: float
    allreduce_seconds: float
    gather_seconds: float
    loading_seconds: float
    samples_per_second: float
    efficiency: float
    checkpoint_seconds: float
    goodput: float
    goodput_known: bool


def slowest_of(devices: int, sigma: float, seed: int = 0, draws: int = DRAWS) -> float:
    """Return the mean of the largest of several lognormal step times of mean 1.

    The largest of n draws has the quantile u^(1/n), so that one stratified draw for each step suffices.

    Args:
        devices: Number of devices n.
        sigma: Standard deviation of the logarithm.
        seed: Seed of the draws.
        draws: Number of simulated steps.
    """
    uniform = (np.arange(draws) + np.random.default_rng(seed).random(draws)) / draws
    quantile = -np.expm1(np.log(np.clip(uniform, 1e-12, 1.0)) / devices)  # upper tail: exact for thousands of devices
    normal = -ndtri(np.clip(quantile, 1e-300, 1 - 1e-16))
    return float(np.exp(sigma * normal - sigma**2 / 2).mean())


def allreduce_seconds(size: float, nodes: int, machine: Machine) -> float:
    """Return the time of an all-reduce: the faster of a ring over all devices and a hierarchy of two levels.

    The ring passes 2 (n - 1) / n of the data over its slowest link in 2 (n - 1) messages. The hierarchy reduces within
    each node, then between nodes, each device with its share, and gathers within each node (Patarasuk and Yuan 2009).

    Args:
        size: Bytes.
        nodes: Number of nodes.
        machine: The nodes.
    """
    if size <= 0 or nodes * machine.devices_per_node == 1:
        return 0.0
    devices = nodes * machine.devices_per_node
    inside = _transfer(2 * size * (1 - 1 / machine.devices_per_node), machine.intra_bytes_per_second, machine)
    if nodes == 1:
        return inside
    ring = _transfer(2 * size * (1 - 1 / devices), machine.inter_bytes_per_second, machine)
    ring += 2 * (devices - 1) * machine.latency_seconds
    between = _transfer(2 * size * (1 - 1 / nodes), machine.inter_bytes_per_second, machine)
    return min(ring, inside + between + 2 * math.ceil(math.log2(nodes)) * machine.latency_seconds)


def gather_seconds(size: float, nodes: int, machine: Machine) -> float:
    """Return the time in which every device receives the features of all others, and returns their gradients.

    Args:
        size: Bytes of the features of all devices together.
        nodes: Number of nodes.
        machine: The nodes.
    """
    devices = nodes * machine.devices_per_node
    if size <= 0 or devices == 1:
        return 0.0
    bandwidth = machine.intra_bytes_per_second if nodes == 1 else machine.inter_bytes_per_second
    latency = machine.latency_seconds * (devices - 1 if nodes > 1 else 0)
    return 2 * (_transfer(size * (1 - 1 / devices), bandwidth, machine) + latency)


def _transfer(size: float, bandwidth: float | None, machine: Machine) -> float:
    return 0.0 if bandwidth is None else size / (bandwidth * machine.network_efficiency)


def simulate_step(work: Workload, machine: Machine, nodes: int, batch: int, seed: int = 0) -> ScalingPoint:
    """Estimate a step on a number of nodes; ``efficiency`` is relative to a single device without any waiting.

    Args:
        work: The step.
        machine: The nodes.
        nodes: Number of nodes, at least 1.
        batch: Global batch, at least one sample for each device.
        seed: Seed of the stragglers.

    Raises:
        UserError: The batch has fewer samples than there are devices.
    """
    devices = nodes * machine.devices_per_node
    if batch < devices:
        raise UserError(f"a batch of {batch} samples leaves some of {devices} devices without any: use fewer nodes")
    per_device = math.ceil(batch / devices)
    compute = per_device * work.flops_per_sample / machine.flops_per_device
    straggler = compute * (slowest_of(devices, machine.straggler_sigma, seed) - 1)
    traffic = allreduce_seconds(work.gradient_bytes, nodes, machine) * (1.5 if work.sharded else 1.0)
    last = traffic * min(1.0, BUCKET_BYTES / work.gradient_bytes) if work.gradient_bytes else 0.0
    exposed = max(last, traffic - machine.overlap * BACKWARD_SHARE * compute)
    gathered = gather_seconds(work.gathered_bytes_per_sample * batch, nodes, machine)
    working = compute + machine.overhead_seconds + straggler + exposed + gathered
    seconds = max(working, *_loading(work, machine, nodes, batch))
    save = (
        work.checkpoint_bytes / machine.write_bytes_per_second
        if machine.write_bytes_per_second and work.checkpoint_bytes
        else None
    )
    failures = FailureModel.of_nodes(nodes, machine.node_mtbf_hours, save or 0.0, machine.restart_seconds)
    known = save is not None and machine.node_mtbf_hours is not None
    interval = max(best_interval(failures), seconds) if known else math.inf
    return ScalingPoint(
        nodes,
        devices,
        batch,
        seconds,
        compute,
        straggler,
        exposed,
        gathered,
        seconds - working,
        batch / seconds,
        efficiency=per_device * work.flops_per_sample / machine.flops_per_device / seconds,
        checkpoint_seconds=interval,
        goodput=goodput(interval, failures) if known else 1.0,
        goodput_known=known,
    )


def _loading(work: Workload, machine: Machine, nodes: int, batch: int) -> tuple[float, float]:
    """Return the least time of a step by storage and by decoding, in seconds; 0 where nothing is known."""
    read, decode = machine.read_bytes_per_second, machine.load_samples_per_second
    return (
        batch * work.read_bytes_per_sample / read if read else 0.0,
        batch / (nodes * decode) if decode else 0.0,
    )


def scaling_table(
    work: Workload, machine: Machine, batch: int, nodes: list[int], weak: bool = False, seed: int = 0
) -> list[ScalingPoint]:
    """Estimate several numbers of nodes; efficiency is relative to the first of them.

    Args:
        work: The step.
        machine: The nodes.
        batch: Global batch; with ``weak``, that of the first number of nodes, and others have as many samples a device.
        nodes: Numbers of nodes, ascending. Those with more devices than samples are left out.
        weak: Grow the batch with the nodes.
        seed: Seed of the stragglers.
    """
    batches = [batch * count // nodes[0] if weak else batch for count in nodes]
    points = [
        simulate_step(work, machine, count, size, seed)
        for count, size in zip(nodes, batches, strict=True)
        if size >= count * machine.devices_per_node
    ]
    if not points:
        return []
    first = points[0].samples_per_second / points[0].devices
    return [replace(point, efficiency=point.samples_per_second / point.devices / first) for point in points]
