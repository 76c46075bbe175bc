"""Publication on the Hugging Face Hub, or on another server that speaks its API (HF_ENDPOINT).

The version is a tag on a branch of its own; ``main``, which everyone loads by default, moves in one commit at the end.
Large files are stored by content, so that an upload that was killed continues. The token is the one that ``hf auth
login`` stored, or HF_TOKEN; it is never an option, printed or written.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from leam_mm.errors import UserError
from leam_mm.release.publication import Publication

SCHEME = "hf://"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
KEPT = {".gitattributes"}  # the Hub's own


@dataclass(frozen=True)
class HubRepository:
    """A model repository.

    Args:
        repository: ``owner/name``.
        private: Whether a repository that is created is private.
    """

    repository: str
    private: bool = True

    @property
    def address(self) -> str:
        """The address as it is given to the command."""
        return SCHEME + self.repository

    def state(self, release: Publication) -> str:
        """Return what publishing would do: ``new`` or ``complete``.

        Raises:
            UserError: The version exists with other bytes, or the release has another name than the repository.
        """
        if release.name != self.repository:
            raise UserError(
                f"the release is named {release.name}, but open_clip looks for its tokenizer under the name of the "
                f"repository: build it with --name {self.repository}"
            )
        with self._faults():
            api = HfApi()
            try:
                tags = [tag.name for tag in api.list_repo_refs(self.repository).tags]
            except RepositoryNotFoundError:
                return "new"
            if release.version not in tags:
                return "new"
            if changed := self._differences(api, release, release.version):
                raise UserError(
                    f"{self.address} has the version {release.version} with another {changed[0]}: a published version "
                    "is never changed, give another --version"
                )
            return "complete"

    def publish(self, release: Publication, progress: Any = None) -> None:
        """Upload a release as a new version, or continue its upload, and move ``main`` to it at the end.

        Args:
            release: What is published.
            progress: Not used; the library shows its own.

        Raises:
            UserError: The version exists with other bytes, or the server refuses the release.
        """
        complete = self.state(release) == "complete"
        with self._faults():
            api, branch = HfApi(), f"publish-{release.version}"
            if not complete:
                api.create_repo(self.repository, private=self.private, exist_ok=True)
                api.create_branch(self.repository, branch=branch, exist_ok=True)
                self._commit(api, release, branch)
                if wrong := self._differences(api, release, branch):
                    raise UserError(f"{self.address} does not hold what was uploaded ({wrong[0]}): publish again")
                api.create_tag(self.repository, tag=release.version, revision=branch)
            if release.latest and self._differences(api, release, "main"):
                self._commit(api, release, "main")
            if any(one.name == branch for one in api.list_repo_refs(self.repository).branches):
                api.delete_branch(self.repository, branch=branch)

    def _commit(self, api: HfApi, release: Publication, revision: str) -> None:
        """Make the files of a branch those of the release, in one commit."""
        present = {entry.path for entry in _files(api, self.repository, revision)}
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=release.folder / name) for name in release.names
        ]
        operations += [CommitOperationDelete(path) for path in sorted(present - set(release.names) - KEPT)]
        api.create_commit(
            self.repository, operations, commit_message=f"Version {release.version}",
            commit_description=f"own_sha256 {release.own_sha256}", revision=revision,
        )  # fmt: skip

    def _differences(self, api: HfApi, release: Publication, revision: str) -> list[str]:
        """Return the files of a revision that are not those of the release."""
        found = {entry.path: entry for entry in _files(api, self.repository, revision)}
        wrong = sorted(found.keys() - set(release.names) - KEPT)
        for name in release.names:
            entry = found.get(name)
            if entry is None or entry.size != release.sizes[name]:
                wrong.append(name)
            elif entry.lfs is not None:
                wrong += [name] if entry.lfs.sha256 != release.digests[name] else []
            elif entry.blob_id != git_blob_sha1((release.folder / name).read_bytes()):
                wrong.append(name)
        return wrong

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of the library, its HTTP client, and the system
            reason, token = " ".join(str(error).split())[:400], get_token()
            reason = reason.replace(token, "(token)") if token else reason
            raise UserError(
                f"{self.address} does not take the release ({type(error).__name__}: {reason}): log in with 'hf auth "
                "login' if it asks for it, and give the same command again; it continues"
            ) from None


def open_repository(address: str, private: bool) -> HubRepository:
    """Return the repository behind ``hf://owner/name``.

    Raises:
        UserError: The address has another form.
    """
    repository = address.removeprefix(SCHEME).rstrip("/")
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"--to {address}: give {SCHEME}owner/name")
    return HubRepository(repository, private)


def git_blob_sha1(content: bytes) -> str:
    """Return the name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _files(api: HfApi, repository: str, revision: str) -> list[Any]:
    entries = api.list_repo_tree(repository, recursive=True, revision=revision)
    return [entry for entry in entries if hasattr(entry, "blob_id")]
