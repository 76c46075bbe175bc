"""Draws the images of the page, each as a marked file of its own that is served byte by byte.

A file has a name that nobody can guess, and the oldest are removed, so that neither memory nor disk grows.
"""

import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.inference.drawing import Drawer, DrawingSettings, Source, plan_drawings
from leam_mm.serving.current_deletion_list import CurrentDeletionList
from leam_mm.serving.refusal import Refusal
from leam_mm.serving.uploaded_image import check_upload

MAX_PROMPT = 1000  # characters
MAX_IMAGES = 8
MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_SEED = 2**31 - 1
KEPT = 100  # requests whose images are kept


@dataclass(frozen=True)
class DrawingRequest:
    """What a person asks for.

    Args:
        prompt: Text, 1 to MAX_PROMPT characters.
        seed: First seed, 0 to MAX_SEED; None takes a random one.
        images: 1 to MAX_IMAGES.
        steps: 1 to MAX_STEPS steps of the sampler.
        guidance: Scale of classifier-free guidance, 0 to MAX_GUIDANCE.
        edit: Uploaded image to start from, or None.
        strength: How much of it is replaced, 0 to 1.
        mask: Uploaded image, white where the image is replaced; None replaces it everywhere.
    """

    prompt: str
    seed: int | None = None
    images: int = 1
    steps: int = 28
    guidance: float = 4.0
    edit: Path | None = None
    strength: float = 0.6
    mask: Path | None = None

    def checked(self) -> "DrawingRequest":
        """Return the request with its seed, after a check of all limits but those of the uploads.

        Raises:
            Refusal: A value is outside its limits.
        """
        prompt = " ".join(self.prompt.split())
        if not prompt:
            raise Refusal("no_prompt")
        if len(prompt) > MAX_PROMPT:
            raise Refusal("long_prompt", limit=MAX_PROMPT, length=len(prompt))
        seed = secrets.randbelow(MAX_SEED - MAX_IMAGES) if self.seed is None else self.seed
        limits = {
            "seed": (seed, 0, MAX_SEED), "images": (self.images, 1, MAX_IMAGES), "steps": (self.steps, 1, MAX_STEPS),
            "guidance": (self.guidance, 0, MAX_GUIDANCE), "strength": (self.strength, 0, 1),
        }  # fmt: skip
        for name, (value, least, most) in limits.items():
            if not least <= value <= most:
                raise Refusal("number", name=name, least=least, most=most)
        return replace(self, prompt=prompt, seed=seed)


@dataclass(frozen=True)
class DrawnImage:
    """One image.

    Args:
        name: Name under which the page serves the file; empty if it is on the publisher's deletion list.
        prompt: The prompt.
        seed: The seed.
        width: W in pixels.
        height: H in pixels.
    """

    name: str
    prompt: str
    seed: int
    width: int
    height: int


class ImageStore:
    """The files of the images that were drawn last.

    Args:
        folder: Where they lie.
        kept: Most requests whose files are kept.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        """See the class for the arguments."""
        self.folder, self.kept = folder, kept
        self._folders: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()

    def new_folder(self) -> Path:
        """Return an empty folder for the images of one request, and remove the oldest one."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(parents=True)
        with self._lock:
            self._folders[folder.name] = folder
            while len(self._folders) > self.kept:
                shutil.rmtree(self._folders.popitem(last=False)[1], ignore_errors=True)
        return folder

    def find(self, name: str) -> Path | None:
        """Return the file of an image by its name, FOLDER/FILE; None if it is gone or never was."""
        token, _, file = name.partition("/")
        with self._lock:
            folder = self._folders.get(token)
        path = folder / file if folder is not None and file == Path(file).name else None
        return path if path is not None and path.suffix == ".png" and path.is_file() else None


class DrawingService:
    """Draws with one generator.

    Args:
        module: A LatentDiffusionModule.
        store: Where the images are kept.
        listed: Images that are not shown, or None.

    Raises:
        UserError: Text encoder or codec cannot be opened.
    """

    def __init__(self, module: Any, store: ImageStore, listed: CurrentDeletionList | None = None) -> None:
        """Open text encoder and codec; see the class for the arguments."""
        self.module, self.store, self.listed = module, store, listed
        self.side = int(module.latent_size * module.codec.downscale)  # H = W in pixels of an image
        module.caption_encoder  # noqa: B018 - opened now, not by the first person

    def draw(self, request: DrawingRequest, advance: Callable[[int, int], object]) -> list[DrawnImage]:
        """Draw the images of a request.

        Args:
            request: A checked request.
            advance: Called before each image with the number of finished ones and of all.

        Returns:
            The images in the order of their seeds.

        Raises:
            Refusal: An upload cannot be used.
        """
        assert request.seed is not None
        for upload in filter(None, (request.edit, request.mask)):
            check_upload(upload)
        source = Source(request.edit, request.strength, request.mask) if request.edit is not None else None
        folder = self.store.new_folder()
        settings = DrawingSettings(SamplerSettings(request.steps, request.guidance), None, source)
        listed = self.listed.read() if self.listed is not None else None
        drawer = Drawer(self.module, settings, folder, deletion_list=listed)
        drawings = plan_drawings([request.prompt], request.seed, request.images)
        advance(0, len(drawings))
        for number, drawing in enumerate(drawings, 1):
            drawer.draw([drawing], lambda _: None)
            advance(number, len(drawings))
        return [
            DrawnImage(
                f"{folder.name}/{drawing.file}" if (folder / drawing.file).is_file() else "",
                drawing.prompt, drawing.seed, drawer.width, drawer.height,
            )
            for drawing in drawings
        ]  # fmt: skip
