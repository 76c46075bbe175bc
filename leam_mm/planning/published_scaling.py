"""Throughput that others published for several numbers of nodes, and the error of the simulator at each of them.

``python -m leam_mm.planning.published_scaling`` prints the table of docs/planning.md. Of each series the one-node point
gives the sustained rate of a device (the model's FLOPs and MFU are not published for all of them). One more point gives
the spread of step times for all series, and one the bandwidth of a storage that is not published. All other points are
predicted.
"""

from dataclasses import dataclass, replace

from scipy.optimize import brentq

from leam_mm.planning.scaling_simulator import STRAGGLER_SIGMA, Machine, Workload, simulate_step

GIGA = 1e9


@dataclass(frozen=True)
class PublishedSeries:
    """Throughput of one training program on several numbers of nodes.

    Args:
        name: Model and machine.
        source: Where the numbers were read, with date.
        assumed: What the source does not say and the simulator needs.
        work: The step; operations are relative, since the one-node point sets the rate.
        machine: The nodes.
        batch_per_device: Samples of one device if the batch grows with the nodes, else None.
        batch: Global batch if it is the same for all numbers of nodes, else None.
        points: (nodes, samples per second).
        fitted: Numbers of nodes whose point was used for a fit.
    """

    name: str
    source: str
    assumed: str
    work: Workload
    machine: Machine
    batch_per_device: int | None
    batch: int | None
    points: tuple[tuple[int, float], ...]
    fitted: frozenset[int]

    def batch_of(self, nodes: int) -> int:
        """Return the global batch on a number of nodes."""
        return self.batch or nodes * self.machine.devices_per_node * (self.batch_per_device or 1)

    def fitted_machine(self, sigma: float = STRAGGLER_SIGMA) -> Machine:
        """Return the machine with the rate of a device that gives the published throughput of one node."""
        nodes, published = self.points[0]

        def excess(log_rate: float) -> float:
            machine = replace(self.machine, flops_per_device=10**log_rate, straggler_sigma=sigma)
            return simulate_step(self.work, machine, nodes, self.batch_of(nodes)).samples_per_second / published - 1

        rate = 10 ** float(brentq(excess, 6, 18, xtol=1e-10))
        return replace(self.machine, flops_per_device=rate, straggler_sigma=sigma)

    def ratios(self, sigma: float = STRAGGLER_SIGMA) -> dict[int, float]:
        """Return predicted over published throughput for each number of nodes."""
        machine = self.fitted_machine(sigma)
        return {
            nodes: simulate_step(self.work, machine, nodes, self.batch_of(nodes)).samples_per_second / published
            for nodes, published in self.points
        }


# 4 GH200 and 4 adapters of 200 Gbit/s a node, NVLink within it.
JUPITER = Machine(4, 1.0, intra_bytes_per_second=150 * GIGA, inter_bytes_per_second=100 * GIGA)
# 8 A100 and 8 adapters of 200 Gbit/s a node; 8 H100 and 8 of 400.
SUPERPOD_A100 = Machine(8, 1.0, intra_bytes_per_second=300 * GIGA, inter_bytes_per_second=200 * GIGA)
SUPERPOD_H100 = Machine(8, 1.0, intra_bytes_per_second=450 * GIGA, inter_bytes_per_second=400 * GIGA)
LAION = "github.com/LAION-AI/open-clap-scaling, README, a copy read on 2026-11-29"
NEMO = "docs.nvidia.com/nemo-framework/user-guide, CLIP performance, a copy read on 2026-11-29"
MOSAIC = "github.com/mosaicml/diffusion, README (066e68f) and SD-2-base-256.yaml (56e31b6), read on 2026-11-29"
SD2_BYTES = 866e6 * 4  # parameters of the UNet, in float32
# Latents and caption states (77 x 1024) of a sample in 16 bits.
SD2_256, SD2_512 = 2 * (4 * 32**2 + 77 * 1024), 2 * (4 * 64**2 + 77 * 1024)
MOSAIC_STORAGE = 11600 * SD2_256  # bytes per second, fitted on 128 GPUs at 256 px
NVIDIA_ASSUMED = "256 samples a device, float32 gradients of 1.37e9 parameters, features of 1,024 float32"
SERIES = (
    PublishedSeries(
        "CLAP HTSAT-tiny, JUPITER",
        LAION,
        "float32 gradients of 153e6 parameters, features of 512 float32, links by the specification of GH200",
        Workload(3 * 111.20e9, 153e6 * 4, 2 * 512 * 4),
        JUPITER,
        616,
        None,
        ((1, 2495), (2, 4966), (4, 9865), (8, 19572), (16, 38512), (32, 75008), (64, 146767), (128, 278833)),
        frozenset({1, 32}),
    ),
    PublishedSeries(
        "CLAP HTSAT-base, JUPITER",
        LAION,
        "float32 gradients of 200e6 parameters, features of 512 float32, links by the specification of GH200",
        Workload(3 * 130.09e9, 200e6 * 4, 2 * 512 * 4),
        JUPITER,
        416,
        None,
        ((1, 2153), (2, 4244), (4, 8379), (8, 16701), (16, 32502), (32, 64691), (64, 124245), (128, 232876)),
        frozenset({1}),
    ),
    PublishedSeries(
        "CLIP g/14, DGX A100",
        NEMO,
        NVIDIA_ASSUMED,
        Workload(3 * 581.15e9, 1.37e9 * 4, 2 * 1024 * 4),
        SUPERPOD_A100,
        256,
        None,
        ((1, 559), (2, 1115), (4, 2190), (8, 4407), (16, 8633)),
        frozenset({1}),
    ),
    PublishedSeries(
        "CLIP g/14, DGX H100",
        NEMO,
        NVIDIA_ASSUMED,
        Workload(3 * 581.15e9, 1.37e9 * 4, 2 * 1024 * 4),
        SUPERPOD_H100,
        256,
        None,
        ((1, 935), (2, 1795), (4, 3502), (8, 6771), (16, 13829)),
        frozenset({1}),
    ),
    PublishedSeries(
        "Stable Diffusion 2 UNet, 256 px, 8 A100 a node",
        MOSAIC,
        "links of a DGX A100; a storage of 1.9 GB/s, fitted on 16 nodes",
        Workload(1e12, SD2_BYTES, 0.0, SD2_256, sharded=True),
        replace(SUPERPOD_A100, read_bytes_per_second=MOSAIC_STORAGE),
        None,
        2048,
        ((1, 1100), (2, 2180), (4, 4080), (8, 8530), (16, 11600)),
        frozenset({1, 16}),
    ),
    PublishedSeries(
        "Stable Diffusion 2 UNet, 512 px, 8 A100 a node",
        MOSAIC,
        "links of a DGX A100; the storage fitted at 256 px",
        Workload(4e12, SD2_BYTES, 0.0, SD2_512, sharded=True),
        replace(SUPERPOD_A100, read_bytes_per_second=MOSAIC_STORAGE),
        None,
        2048,
        ((1, 290), (2, 585), (4, 1195), (8, 2340), (16, 4590)),
        frozenset({1}),
    ),
)


def fit_straggler_sigma() -> float:
    """Return the spread of step times with which the 32-node point of CLAP HTSAT-tiny on JUPITER is met."""
    return float(brentq(lambda sigma: SERIES[0].ratios(sigma)[32] - 1, 1e-4, 0.2, xtol=1e-5))


def main() -> None:
    """Print the error at each published point."""
    for series in SERIES:
        print(f"{series.name} ({series.source})")
        for nodes, ratio in series.ratios().items():
            print(f"  {nodes:>4} nodes  {100 * (ratio - 1):+6.1f} %{'  fitted' if nodes in series.fitted else ''}")


if __name__ == "__main__":
    print(f"spread of step times: {fit_straggler_sigma():.4f}")
    main()
