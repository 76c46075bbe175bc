"""Request one image from a server, hop by hop, and record the evidence in its answers.

On every hop of a redirect the address is checked, and rights reserved in the headers are checked before the body is
read, according to the legal basis of the link. The evidence has two parts: what a second visit would find again goes
into the sample's ``consent``; what depends on the time of the visit (seconds, entity tags) only into the ledger.
"""

import http.client
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from data_tools.network.http_body import BACK_OFF, REDIRECTS, TEMPORARY, retry_after, unpack
from data_tools.network.image_fetch import FetchSetting, Guard, PrivateAddressError, TooManyBytesError, build_opener
from data_tools.network.link_address import LinkRefused, check_link, host_of
from data_tools.rights.reservations import ACCESS, Signal, decide, header_signals, origin_of
from data_tools.rights.rsl_terms import header_links
from data_tools.work.foreign_error import first_line
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.data.registered_domain import same_owner

RIGHTS = ("x-robots-tag", "tdm-reservation", "tdm-policy", "content-usage", "content-signal", "link")
VISIT = ("etag", "last-modified", "date", "retry-after", "content-length")
LONGEST_HEADER = 1000  # characters kept of one header
AGAIN = "download"  # the rule of failures after which another attempt may succeed


@dataclass
class Answer:
    """Result of requesting one link.

    Args:
        content: The image file as the server stores it, or None if there is none or it is refused.
        rule: Rule that refused it; empty if none did.
        value: Value on which the rule decided, shortened.
        reason: The refusal in words.
        response: Evidence that a second visit would find again.
        visit: Evidence of this visit only.
        again: Whether another attempt now may succeed.
        busy: Whether the server asks for a pause.
        wait: Length of the pause in seconds, if the server states it.
        reached: Whether a connection was made.
        basis: Legal basis that holds at the last address, if it is not the link's own.
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
    basis: LegalBasis | None = None

    def refuse(self, rule: str, value: str, reason: str, again: bool = False) -> "Answer":
        """Record why there is no image."""
        self.content, self.rule, self.value, self.again = None, rule, value[:200], again
        self.reason = (reason.splitlines() or [""])[0][:200]
        return self


class ImageRequest:
    """Requests images, one at a time in each thread.

    Args:
        setting: Limits, names and permissions.
        judge_origin: ``RobotsRules.decide``, called for each address before it is requested. It returns the signal of
            robots.txt, tdmrep.json or ai.txt that forbids the request, or None, and all signals. Not called for hosts
            of ``allow_private`` unless ``spare_private`` is set.
        read_terms: ``RobotsRules.terms``, called for RSL documents in Link headers; without it they reserve rights.
    """

    def __init__(
        self,
        setting: FetchSetting,
        judge_origin: Callable[[str, LegalBasis], tuple[Signal | None, list[Signal]]] | None = None,
        read_terms: Callable[[str, str, list[str]], list[Signal]] | None = None,
    ) -> None:
        """Build the opener; see the class for the arguments."""
        self.setting, self.guard, self.judge_origin = setting, Guard(setting), judge_origin
        self.opener = build_opener(setting, self.guard, follow=False)
        self.read_terms = read_terms or _unread_terms

    def ask(self, url: str, basis: LegalBasis) -> Answer:
        """Fetch one image; never raises, and never takes much longer than ``image_seconds``.

        Args:
            url: Address accepted by ``check_link``.
            basis: Legal basis of the link; it decides which reservations bind.
        """
        begin = time.monotonic()
        answer = Answer()
        self.guard.set_deadline(begin + self.setting.image_seconds)
        try:
            self._walk(url, basis, answer)
        except LinkRefused as refused:
            answer.refuse(refused.rule, refused.value, refused.reason)
        except TooManyBytesError as error:
            answer.refuse("bytes", str(error).rpartition(" ")[2], str(error))
        except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
            self._failed(error, answer)
        except Exception as error:  # hostile headers make libraries raise undocumented exceptions
            answer.refuse(AGAIN, type(error).__name__, f"{type(error).__name__}: {first_line(error)}")
        finally:
            self.guard.set_deadline(None)
        seconds = time.monotonic() - begin
        if seconds > self.setting.image_seconds and (answer.content is not None or answer.rule == AGAIN):
            answer.refuse(AGAIN, "seconds", f"took longer than {self.setting.image_seconds:g} s")
        answer.visit["seconds"] = round(seconds, 3)
        return answer

    def _failed(self, error: Exception, answer: Answer) -> None:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        text = first_line(cause if isinstance(cause, BaseException) else OSError(cause))
        if isinstance(cause, PrivateAddressError):
            answer.refuse("private_address", text, text)
        elif isinstance(cause, http.client.IncompleteRead):
            answer.refuse(AGAIN, "truncated", "the connection ended before the body did", again=True)
        else:
            answer.reached = bool(answer.response.get("hops"))
            name = "timeout" if isinstance(cause, TimeoutError) else type(cause).__name__
            answer.refuse(AGAIN, name, text, again=isinstance(cause, OSError | http.client.HTTPException))

    def _walk(self, url: str, basis: LegalBasis, answer: Answer) -> None:
        """Follow the hops; ``answer`` keeps the evidence even if this raises."""
        setting, address, own = self.setting, url, basis
        hops: list[dict[str, Any]] = []
        for _ in range(setting.max_hops + 1):
            basis = self._basis_at(address, url, own)
            answer.basis = basis if basis is not own else None
            if self._forbidden_by_origin(address, {origin_of(hop["url"]) for hop in hops}, basis, answer):
                return
            with self.opener.open(urllib.request.Request(address), timeout=setting.timeout) as response:
                if not address.startswith("http"):  # a file has no server that could reserve rights
                    answer.content = response.read()
                    return
                headers = _all_headers(response.headers)
                status = int(response.status)
                hops.append({"url": address, "status": status} | _kept(headers, RIGHTS))
                answer.response |= {"hops": hops, "final_url": address}
                answer.visit |= _kept(headers, VISIT)
                signals = header_signals(headers, setting.agent_name, address, datetime.now(UTC))
                if basis.honours_reservations and decide(signals, basis) is None:
                    for terms in header_links(headers, address):
                        signals += self.read_terms(terms, "header:rsl", [address])
                if self._record(signals, decide(signals, basis), answer):
                    return
                location = next((value for name, value in headers if name.lower() == "location"), None)
                if status not in REDIRECTS or location is None:
                    self._read(response, status, answer)
                    return
                target = urljoin(address, location.strip())
            target, _, _ = check_link(target, Path(), False, setting.allow_private)
            if any(hop["url"] == target for hop in hops):
                answer.refuse(AGAIN, "redirect_loop", f"redirects lead back to {target}")
                return
            address = target
        answer.refuse(AGAIN, "redirects", f"more than {setting.max_hops} redirects")

    def _basis_at(self, address: str, url: str, basis: LegalBasis) -> LegalBasis:
        """Return the legal basis at a hop: what an owner allows says nothing about another owner's site."""
        host = host_of(address)
        if not basis.comes_from_the_owner or same_owner(host, host_of(url)) or host in self.setting.agreed_hosts:
            return basis
        return LegalBasis.art4_general

    def _forbidden_by_origin(self, address: str, visited: set[str], basis: LegalBasis, answer: Answer) -> bool:
        """Return whether an origin on the way forbids the request."""
        if self.judge_origin is None or not address.startswith("http"):
            return False
        if origin_of(address) in visited and basis.may_be_agreed:
            return False  # an agreement for this basis; this origin was checked at an earlier hop
        if self.setting.ask_origins != "all" and not visited:
            return False  # screened by screen_links
        if host_of(address) in self.setting.allow_private and not self.setting.spare_private:
            return False
        forbids, signals = self.judge_origin(address, basis)
        return self._record(signals, forbids, answer)

    def _record(self, signals: list[Signal], forbids: Signal | None, answer: Answer) -> bool:
        """Record the signals; return whether one of them forbids the use."""
        if signals:
            answer.response.setdefault("signals", []).extend(asdict(signal) for signal in signals)
        if forbids:
            reason = f"{forbids.kind} at {forbids.source}: {forbids.value}"
            rule = "robots.txt" if forbids.kind == ACCESS else "reservation"
            answer.refuse(rule, f"{forbids.kind}: {forbids.value}", reason)
        return forbids is not None

    def _read(self, response: Any, status: int, answer: Answer) -> None:
        """Read the body of the last hop."""
        answer.response["content_type"] = str(response.headers.get("Content-Type", ""))[:LONGEST_HEADER]
        if status in BACK_OFF:
            answer.busy = True
            answer.wait = retry_after(response.headers.get("Retry-After"), time.time())
        if status != 200:
            reason = f"HTTP status {status} {str(response.reason)[:100]}".strip()
            answer.refuse(AGAIN, f"status {status}", reason, again=status in BACK_OFF + TEMPORARY)
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
        if answer.basis is not None:
            answer.response["legal_basis"] = answer.basis.value


def _unread_terms(address: str, kind: str, targets: list[str]) -> list[Signal]:
    return [Signal(kind, "its terms were not read", address, True)]


def _all_headers(message: Message) -> list[tuple[str, str]]:
    """Return all headers, also those after a name with a space before its colon, at which Python's parser stops.

    A client must not take such a line for the beginning of the body (RFC 9112, section 5.1).
    """
    headers = [(name, str(value)) for name, value in message.items()]
    rest = message.get_payload() if message.defects else ""
    for line in rest.splitlines() if isinstance(rest, str) else []:
        name, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            headers.append((name.strip(), value.strip()))
    return headers


def _kept(headers: list[tuple[str, str]], names: tuple[str, ...]) -> dict[str, Any]:
    found = [[name.lower(), str(value)[:LONGEST_HEADER]] for name, value in headers if name.lower() in names]
    return {"headers": found} if found else {}
