"""Command ``serve``: a page on which people try a release."""

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from leam_mm.command_line import NonNegativeInt
from leam_mm.errors import UserError

CAPTIONS = "documents/captions.txt"  # of a release, one caption a line
CLASSES = "documents/classes.json"  # of a release, a class file


@dataclass(frozen=True)
class ServeOptions:
    """Open a page on which people try a release: draw, edit, label, compare, read its documents.

    It is answered on this machine only, sends nothing to other machines, and logs no prompts. Ctrl-C ends it.

    Args:
        folder: Release folder.
        compare: A second release, to draw with both side by side.
        captions: Text file with one caption a line; an uploaded image is shown with the nearest of them.
        classes: Class file with label texts in several languages, as of zero-shot evaluation.
        deletion_list: File of hashes of images that are not shown; by default that of the release, if it has one. It is
            read again whenever it changes.
        port: Port of the page; 0 takes a free one.
        host: Address on which the page is answered; any but loopback needs --open-to-network.
        open_to_network: Answer other machines, too; whoever reaches this machine can use the page, without a password.
        device: cpu or cuda.
    """

    folder: Path
    compare: Path | None = None
    captions: Path | None = None
    classes: Path | None = None
    deletion_list: Path | None = None
    port: NonNegativeInt = 7860
    host: str = "127.0.0.1"
    open_to_network: bool = False
    device: str = "cpu"


def serve(options: ServeOptions, check: Callable[[Path], object] | None = None) -> int:
    """Serve the page until Ctrl-C.

    Args:
        options: What to serve, and where.
        check: Called with each release folder before anything in it is opened; raises a UserError. None compares the
            files with their recorded digests.

    Returns:
        The exit code.

    Raises:
        UserError: The release is damaged, the port is taken, or a library is missing.
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'leam_mm[serve]'")
    # Function-local: seconds of imports, not needed for --help and for messages on the address.
    from leam_mm.serving.page_server import address, bind, is_loopback, local_hosts

    console = Console(markup=False, soft_wrap=True, highlight=False)
    local = is_loopback(options.host)
    if not local and not options.open_to_network:
        raise UserError(
            f"--host {options.host} is not this machine alone: add --open-to-network if everybody who reaches it may "
            "use the page, or leave --host out"
        )
    for folder in filter(None, (options.folder, options.compare)):
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not there: give the folder of a release; make quickstart writes runs/quickstart/release"
            )
    if options.port > 65535:
        raise UserError(f"--port is {options.port}: give a number up to 65535")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _exit)  # Python's default would leave uploads and images behind
    with (
        bind(options.host, options.port) as listening,
        tempfile.TemporaryDirectory(prefix="leam_mm_page_") as temporary,
    ):
        os.environ["GRADIO_TEMP_DIR"] = str(Path(temporary) / "uploads")  # deleted with the page
        if not local:
            console.print(
                f"warning: the page is open to every machine that reaches {options.host}, without a "
                "password and without encryption"
            )
        with console.status("verifying and opening the release"):
            app, queue = _application(options, Path(temporary), check)
        from leam_mm.serving.page_server import run_server

        def ready() -> None:
            console.print(f"page of {options.folder}: {address(options.host, listening)} (Ctrl-C ends it)")

        try:
            with suppress(KeyboardInterrupt):  # uvicorn has ended cleanly and raises the signal again
                run_server(app, listening, local_hosts(options.host) if local else None, ready)
        finally:
            queue.close()
    console.print("the page is closed; its images and uploads are deleted")
    return 0


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _application(options: ServeOptions, folder: Path, check: Callable[[Path], object] | None):  # type: ignore[no-untyped-def]
    from transformers.utils import logging as transformers_logging

    from leam_mm.serving.drawing_service import ImageStore
    from leam_mm.serving.page_layout import mount_pages
    from leam_mm.serving.page_server import build_app
    from leam_mm.serving.request_queue import RequestQueue
    from leam_mm.serving.served_release import Sources, check_release, open_release

    transformers_logging.disable_progress_bar()
    for one in filter(None, (options.folder, options.compare)):
        (check or check_release)(one)
    store = ImageStore(folder / "images")
    captions = options.captions or _present(options.folder / CAPTIONS)
    classes = options.classes or _present(options.folder / CLASSES)
    listed, other = options.deletion_list, None
    release = open_release(options.folder, store, options.device, Sources(classes, captions), listed)
    if options.compare is not None:
        other = open_release(options.compare, store, options.device, deletion_list=listed)
    queue = RequestQueue()
    app = build_app(store, release.documents)
    mount_pages(app, release, other, queue)
    return app, queue


def _present(path: Path) -> Path | None:
    return path if path.is_file() else None
