"""Exchange of texts between ranks through a TCPStore, without collectives, which may hang."""

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from leam_mm.launch.rank_environment import RankEnvironment

POLL = 0.1  # seconds


class RankMeeting:
    """Texts by key and rank; every wait has a limit.

    Args:
        ranks: Rank and address of this process; rank 0 keeps the store.
        seconds: Limit of the connection to rank 0.

    Raises:
        RuntimeError: Rank 0 does not answer in time, or its port is in use.
    """

    def __init__(self, ranks: RankEnvironment, seconds: float) -> None:
        """Connect; see the class for the arguments."""
        self.ranks = ranks
        self.store: Any = ranks.connect(seconds, serve=True)

    def say(self, key: str, text: str) -> None:
        """Publish a text of this rank."""
        self.store.set(f"doctor/{key}/{self.ranks.rank}", text)

    def hear(self, key: str, seconds: float, ranks: Iterable[int] | None = None) -> dict[int, str]:
        """Return the texts of a key by rank; ranks that publish none within the limit are missing.

        Args:
            key: As given to ``say``.
            seconds: Limit; 0 returns what is there.
            ranks: Ranks to wait for; by default all.
        """
        end = time.monotonic() + seconds
        wanted = list(range(self.ranks.world) if ranks is None else ranks)
        keys = [f"doctor/{key}/{rank}" for rank in wanted]
        while not self.store.check(keys) and time.monotonic() < end:
            time.sleep(POLL)
        found = [name for name in keys if self.store.check([name])]
        return {int(name.rpartition("/")[2]): self.store.get(name).decode() for name in found}

    def announce(self, key: str, text: str = "1") -> None:
        """Publish a text of rank 0 to all ranks."""
        self.store.set(f"doctor/{key}", text)

    def announced(self, key: str, seconds: float) -> str | None:
        """Wait for a text of rank 0, without a request per poll; None if it does not come within the limit."""
        try:
            self.store.wait([f"doctor/{key}"], timedelta(seconds=seconds))
        except RuntimeError:
            if not self.store.check([f"doctor/{key}"]):  # raises if rank 0 is gone
                return None
        return self.store.get(f"doctor/{key}").decode()

    def start_together(self, key: str, seconds: float) -> None:
        """Wait until all ranks call this with the same key, at most the limit."""
        self.say(key, "1")
        if self.ranks.rank == 0:
            self.hear(key, seconds)
            self.announce(key)
        else:
            self.announced(key, 2 * seconds)
