"""Ask a server for one image, hop by hop, and keep what its answers said.

On every hop of a redirect the address is checked, and the rights that the headers reserve are judged before the body is
read, as the legal basis of the link demands. The evidence has two halves: what a second visit would find again goes
into the sample's ``consent``; what belongs to the clock (seconds, entity tags) only into the ledger.
"""

import http.client
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from data_tools.network.http_body import PASSING, PATIENCE, REDIRECTS, patience, unpack
from data_tools.network.image_fetch import FetchSetting, Guard, PrivateAddressError, TooManyBytesError, build_opener
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.rights.legal_basis import LegalBasis
from data_tools.rights.reservations import ACCESS, Signal, decide, header_signals, origin_of

RIGHTS = ("x-robots-tag", "tdm-reservation", "tdm-policy", "content-usage", "content-signal", "link")
VISIT = ("etag", "last-modified", "date", "retry-after", "content-length")
LONGEST_HEADER = 1000  # characters kept of one header
AGAIN = "download"  # the rule of links that another attempt may bring


@dataclass
class Answer:
    """What came of asking for one link.

    Args:
        content: The bytes as the server keeps them, or None where there is a reason against it.
        rule: Rule that refused, empty if none did.
        value: What that rule looked at, in a few characters.
        reason: In words.
        response: Evidence that a second visit would find again.
        visit: Evidence of this visit alone.
        again: Whether another attempt now may succeed.
        busy: Whether the server asks to be left alone for a while.
        wait: For how long, in seconds, if it says so.
        reached: Whether a connection was made.
    """

    content: bytes | None = None
    rule: str = ""
    value: str = ""
    reason: str = ""
    response: dict[str, Any] = field(default_factory=dict)
    visit: dict[str, Any] = field(default_factory=dict)
    again: bool = False
    busy: bool = False
    wait: float | None = None
    reached: bool = True

    def refuse(self, rule: str, value: str, reason: str, again: bool = False) -> "Answer":
        """Say why there is no image."""
        self.content, self.rule, self.value, self.again = None, rule, value[:200], again
        self.reason = (reason.splitlines() or [""])[0][:200]
        return self


def basis_of(word: str | None) -> LegalBasis:
    """The legal basis of a row; what is missing or unknown counts as the strictest one, art. 4."""
    try:
        return LegalBasis((word or "").strip())
    except ValueError:
        return LegalBasis.art4_general


class ImageRequest:
    """Asks for images, one at a time in each thread.

    Args:
        setting: Limits, names and permissions.
        parent: Process without which this one has nothing left to do.
        judge_origin: ``RobotsRules.decide``: asked for each address on the way, before it is knocked at (its rules name
            paths): the signal that forbids (robots.txt, tdmrep.json, ai.txt) or None, and all that was said. Hosts of
            ``allow_private`` are ours and not asked, unless ``spare_private`` treats them like others.
    """

    def __init__(
        self,
        setting: FetchSetting,
        parent: int | None = None,
        judge_origin: Callable[[str, LegalBasis], tuple[Signal | None, list[Signal]]] | None = None,
    ) -> None:
        """Open the door to the network; see the class for the arguments."""
        self.setting, self.guard, self.judge_origin = setting, Guard(setting, parent), judge_origin
        self.opener = build_opener(setting, self.guard, follow=False)

    def ask(self, url: str, basis: LegalBasis) -> Answer:
        """Fetch one image, or say why not; never raises, never takes much longer than ``image_seconds``.

        Args:
            url: An address that ``check_link`` has passed.
            basis: Legal basis of the link, from which it follows which reservations bind.
        """
        begin = time.monotonic()
        answer = Answer()
        self.guard.until(begin + self.setting.image_seconds)
        try:
            self._walk(url, basis, answer)
        except LinkRefused as refused:
            answer.refuse(refused.rule, refused.value, refused.reason)
        except TooManyBytesError as error:
            answer.refuse("bytes", str(error).rpartition(" ")[2], str(error))
        except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
            self._failed(error, answer)
        except Exception as error:  # strangers' headers bring libraries to say more than they document
            answer.refuse(AGAIN, type(error).__name__, f"{type(error).__name__}: {error}")
        finally:
            self.guard.until(None)
        seconds = time.monotonic() - begin
        if seconds > self.setting.image_seconds and (answer.content is not None or answer.rule == AGAIN):
            answer.refuse(AGAIN, "seconds", f"took longer than {self.setting.image_seconds:g} s")
        answer.visit["seconds"] = round(seconds, 3)
        return answer

    def _failed(self, error: Exception, answer: Answer) -> None:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        text = str(cause) or type(cause).__name__
        if isinstance(cause, PrivateAddressError):
            answer.refuse("private_address", text, text)
        elif isinstance(cause, http.client.IncompleteRead):
            answer.refuse(AGAIN, "truncated", "the connection ended before the body did", again=True)
        else:
            answer.reached = bool(answer.response.get("hops"))
            name = "timeout" if isinstance(cause, TimeoutError) else type(cause).__name__
            answer.refuse(AGAIN, name, text, again=isinstance(cause, OSError | http.client.HTTPException))

    def _walk(self, url: str, basis: LegalBasis, answer: Answer) -> None:
        """Follow the hops; what was learnt stands in ``answer`` even when an exception ends this."""
        setting, address = self.setting, url
        hops: list[dict[str, Any]] = []
        for _ in range(setting.max_hops + 1):
            if self._closed(address, {origin_of(hop["url"]) for hop in hops}, basis, answer):
                return
            with self.opener.open(urllib.request.Request(address), timeout=setting.timeout) as response:
                if not address.startswith("http"):  # a file has no server that could say anything
                    answer.content = response.read()
                    return
                headers: list[tuple[str, str]] = response.headers.items()
                status = int(response.status)
                hops.append({"url": address, "status": status} | _kept(headers, RIGHTS))
                answer.response |= {"hops": hops, "final_url": address}
                answer.visit |= _kept(headers, VISIT)
                signals = header_signals(headers, setting.agent_name, address, datetime.now(UTC))
                if self._forbidden(signals, basis, answer):
                    return
                if status not in REDIRECTS or "location" not in response.headers:
                    self._read(response, status, answer)
                    return
                target = urljoin(address, str(response.headers["location"]).strip())
            target, _, _ = check_link(target, Path(), False, setting.allow_private)
            if any(hop["url"] == target for hop in hops):
                answer.refuse(AGAIN, "redirect_loop", f"redirects lead back to {target}")
                return
            address = target
        answer.refuse(AGAIN, "redirects", f"more than {setting.max_hops} redirects")

    def _closed(self, address: str, known: set[str], basis: LegalBasis, answer: Answer) -> bool:
        """Whether an origin on the way forbids to go on."""
        if self.judge_origin is None or not address.startswith("http"):
            return False
        if origin_of(address) in known and basis.may_be_agreed:
            return False  # whose agreements name which hosts was looked up before
        if self.setting.ask_origins != "all" and not known:
            return False  # screen_links has asked it
        if urlsplit(address).hostname in self.setting.allow_private and not self.setting.spare_private:
            return False
        forbids, signals = self.judge_origin(address, basis)
        return self._noted(signals, forbids, answer)

    def _forbidden(self, signals: list[Signal], basis: LegalBasis, answer: Answer) -> bool:
        return self._noted(signals, decide(signals, basis), answer)

    def _noted(self, signals: list[Signal], forbids: Signal | None, answer: Answer) -> bool:
        """Note what was said; whether any of it forbids the use."""
        if told := [asdict(signal) for signal in signals]:
            answer.response.setdefault("signals", []).extend(told)
        if forbids:
            reason = f"{forbids.kind} at {forbids.source}: {forbids.value}"
            rule = "robots.txt" if forbids.kind == ACCESS else "reservation"
            answer.refuse(rule, f"{forbids.kind}: {forbids.value}", reason)
        return forbids is not None

    def _read(self, response: Any, status: int, answer: Answer) -> None:
        """The body of the last hop."""
        answer.response["content_type"] = str(response.headers.get("Content-Type", ""))[:LONGEST_HEADER]
        if status in PATIENCE:
            answer.busy = True
            answer.wait = patience(response.headers.get("Retry-After"), time.time())
        if status != 200:
            reason = f"HTTP status {status} {str(response.reason)[:100]}".strip()
            answer.refuse(AGAIN, f"status {status}", reason, again=status in PATIENCE + PASSING)
            return
        content = response.read()
        answer.response["bytes"] = len(content)
        coding = str(response.headers.get("Content-Encoding", "identity")).strip().lower()
        if coding not in ("identity", ""):
            answer.response["content_encoding"] = coding[:LONGEST_HEADER]
            if coding not in ("gzip", "x-gzip", "deflate"):
                answer.refuse("content_encoding", coding, "packed in a way that was not asked for")
                return
            content = unpack(content, self.setting.max_bytes)
        if not content:
            answer.refuse(AGAIN, "empty", "the body is empty")
            return
        answer.content = content


def _kept(headers: list[tuple[str, str]], names: tuple[str, ...]) -> dict[str, Any]:
    found = [[name.lower(), str(value)[:LONGEST_HEADER]] for name, value in headers if name.lower() in names]
    return {"headers": found} if found else {}
