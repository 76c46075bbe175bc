"""The start of a run on several ranks: how long they may take to meet, and what to do if they do not.

Torch's own time-outs are not enough: gloo tries five times, and its messages name no variable.
"""

import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed as dist

SPARE = 5.0  # seconds that torch's own error has to come before ours
REACHED = "set MASTER_ADDR to a name or address of the first node that all nodes reach, and MASTER_PORT to a free port"


@dataclass(frozen=True)
class Place:
    """A rank before it has met the others.

    Args:
        rank: Its global rank.
        ranks: Number of ranks.
        seconds: Time in which they must meet.
    """

    rank: int
    ranks: int
    seconds: float


def meeting_fault(error: BaseException | None, place: Place) -> str:
    """Return one line that says why the ranks did not meet, and the fix.

    Args:
        error: What torch raised; None if the time was over before.
        place: Which rank this is.
    """
    text = "" if error is None else " ".join(str(error).split())
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "?")
    me = f"rank {place.rank} of {place.ranks} on host {socket.gethostname()}"
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "")
    known = ", ".join(sorted(name for _, name in socket.if_nameindex()))
    if "Unable to find address for" in text or "Unable to resolve hostname" in text:
        what = f"GLOO_SOCKET_IFNAME={interface} is no" if interface else "the name of this host belongs to no"
        return f"{me}: {what} interface with an address: set GLOO_SOCKET_IFNAME to one of: {known}"
    if "already in use" in text or "EADDRINUSE" in text:
        return f"{me}: port {port} is in use on {address}: set MASTER_PORT to another one"
    if "full mesh" in text.lower() or "fullmesh" in text.lower():
        way = f"GLOO_SOCKET_IFNAME={interface}" if interface else "the interface of its host name"
        return (
            f"{me} met the others at {address}, but found no connection to them by {way}: set GLOO_SOCKET_IFNAME to "
            f"the interface of the network between the nodes; this host has {known}"
        )
    if "nccl" in text.lower():
        return f"{me} found no connection to the others ({text[:200]}): set NCCL_SOCKET_IFNAME; this host has {known}"
    alone = f"; {address} is this machine only" if _is_loopback(address) else ""
    return (
        f"{me} did not meet the others at MASTER_ADDR={address} MASTER_PORT={port} within {place.seconds:g} s{alone}: "
        f"start all ranks, and {REACHED}; if they meet there, set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME (this host "
        f"has {known})"
    )


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class MeetingAlarm:
    """Ends this process with one line if the ranks do not meet in time.

    Args:
        place: Which rank this is, and the time.
        clean: Called before, to end what this process started.
    """

    def __init__(self, place: Place, clean: Callable[[], None]) -> None:
        """See the class for the arguments."""
        self._place, self._clean = place, clean
        self._timer = threading.Timer(place.seconds + SPARE, self._end)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """The ranks have met, or the error is known."""
        self._timer.cancel()

    def _end(self) -> None:
        if dist.is_initialized():
            return
        with suppress(OSError, ValueError):
            print(f"error: {meeting_fault(None, self._place)}", file=sys.stderr, flush=True)
        self._clean()
        os._exit(2)
