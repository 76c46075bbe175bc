"""The deletion list of a publisher, read again whenever its file changes, so that a request is respected at once."""

from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.marking.deletion_list import FILE, DeletionList


class CurrentDeletionList:
    """A deletion list that may change while the page runs.

    Args:
        given: The file that the publisher refreshes; None takes that in the folder of the release, if there is one.
        release: Folder of the release.

    Raises:
        UserError: The file cannot be read.
    """

    def __init__(self, given: Path | None, release: Path) -> None:
        """Read the file; see the class for the arguments."""
        self.path, self._must_exist = given or release / FILE, given is not None
        self._state: tuple[int, int, int] | None = None
        self._list: DeletionList | None = None
        self.read()

    def read(self) -> DeletionList | None:
        """Return the list as it is now; None if there is none.

        Raises:
            UserError: The file is damaged, or was removed: no image is returned until it is there again.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            if self._must_exist:
                raise UserError(f"the deletion list {self.path} cannot be read ({error.strerror})") from None
            return None
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        if state != self._state:
            self._list, self._must_exist = DeletionList.read(self.path), True
            self._state = state
        return self._list
