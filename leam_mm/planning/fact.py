"""A value with its source: every number about a machine says where it comes from, from when, and how sure it is."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

Value = TypeVar("Value")
Status = Literal["read", "reported by users", "assumed"]
STATUSES: tuple[str, ...] = get_args(Status)
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Fact(Generic[Value]):
    """A value with its source.

    Args:
        value: The value; None if nobody knows it.
        source: What it was read from.
        date: Date of the source, such as 2026-08-07, 2026-08 or 2026; empty for a value that was not found.
        status: ``read`` in the named source, ``reported by users`` in their job scripts or threads, or ``assumed``.
    """

    value: Value | None
    source: str
    date: str
    status: Status

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def needed(self) -> Value:
        """Return the value; call it only where ``known`` was checked.

        Raises:
            ValueError: Nobody knows the value.
        """
        if self.value is None:
            raise ValueError(f"the value is {NOT_KNOWN} ({self.source})")
        return self.value

    def __str__(self) -> str:
        """Return the value as text, with its status unless it was read."""
        if self.value is None:
            return NOT_KNOWN
        return f"{self.value}" if self.status == "read" else f"{self.value} ({self.status})"


def not_found() -> Fact:
    """Return the fact of a value that nobody knows."""
    return Fact(None, "not found", "", "assumed")
