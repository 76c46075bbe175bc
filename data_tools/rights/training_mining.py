"""What a picture's Content Credentials (C2PA) say about training and data mining, read from its own bytes.

Assertions ``c2pa.training-mining`` (C2PA 1.x) and ``cawg.training-mining`` (CAWG, Training and data mining assertion
1.1) hold entries ``*.ai_generative_training``, ``*.ai_training``, ``*.data_mining``, ``*.ai_inference`` or others, each
allowed, notAllowed or constrained; the last is to be treated as notAllowed where nothing more is known. We mine, train
and let trained networks look at pictures, so whatever is not plainly allowed reserves. Manifests of the pictures that
this one was made from count as well.

It fails closed: a manifest that is damaged, does not belong to these pixels, or lies elsewhere reserves, too. Nothing
is fetched: remote manifests, revocation lists and identities on the network are only said to be there. Who signed is
not asked, since there is no list of trusted signers here: a stranger's "no" counts, and his "allowed" opens nothing
that another signal closes.
"""

import functools
import io
import json
from collections.abc import Iterator
from typing import Any

from data_tools.rights.reservations import Signal

LABELS = ("c2pa.training-mining", "cawg.training-mining")
# Without one of these there is no manifest: the type of a manifest store's box (C2PA 2.1, 11.1.4.2), parts of one that
# lost its head, and the XMP property that leads to a remote one.
MARKS = (b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71", b"c2pa.claim", b"c2pa.assertions", b"c2pa.signature")
REMOTE = b":provenance"
TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp", b"GIF8": "image/gif"}
SETTINGS = {
    "core": {
        "decode_identity_assertions": False,
        "allowed_network_hosts": [],
        "max_decompressed_manifest_size_in_mb": 16,
    },
    "verify": {
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
        "verify_trust": False,
        "verify_timestamp_trust": False,
    },
}


def mining_signals(raw: bytes) -> list[Signal]:
    """Read the manifests of a picture.

    Args:
        raw: The file as it was fetched; a picture that was encoded again has lost its manifest.

    Returns:
        One signal of kind ``c2pa`` for each assertion, or for what is wrong with the manifest; none without a manifest.
    """
    marked = any(mark in raw for mark in MARKS)
    if not marked and REMOTE not in raw:
        return []
    kind = next((name for start, name in TYPES.items() if raw.startswith(start)), None)
    if kind is None:
        return [_fault("a manifest in a file of a kind that is not read")] if marked else []
    try:
        store = _read_store(raw, kind)
    except _Unreadable as fault:
        return [_fault(str(fault))]
    if store is None:
        return [_fault("traces of a manifest that cannot be read")] if marked else []
    return list(_judge_store(store))


class _Unreadable(Exception):
    """A manifest that is there, but says nothing that can be relied on."""


@functools.cache
def _reader() -> tuple[Any, Any]:
    """The library and its settings, once for each process: it is large, and most pictures carry no manifest."""
    import c2pa

    return c2pa, c2pa.Context.from_dict(SETTINGS)


def _read_store(raw: bytes, kind: str) -> dict[str, Any] | None:
    """All manifests with the library's findings, or nothing where it sees none."""
    library, context = _reader()
    try:
        with library.Reader(kind, io.BytesIO(raw), context=context) as reader:
            store = json.loads(reader.json())
    except library.C2paError.ManifestNotFound:
        return None
    except Exception as error:  # a native library on hostile input: each way of failing is the same to us
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        if "remote manifest" in text:
            raise _Unreadable(f"its manifest lies elsewhere and is not fetched: {text.rpartition(' ')[2]}") from None
        raise _Unreadable(f"its manifest cannot be read: {text}") from None
    if not isinstance(store, dict) or not isinstance(store.get("manifests"), dict):
        raise _Unreadable("its manifest has no readable content")
    return store


def _judge_store(store: dict[str, Any]) -> Iterator[Signal]:
    state = store.get("validation_state")
    if state not in ("Valid", "Trusted"):
        codes = [str(status.get("code")) for status in store.get("validation_status") or [] if isinstance(status, dict)]
        yield _fault(
            f"its manifest does not hold ({state}): {', '.join(sorted(set(codes)))[:200] or 'no reason given'}"
        )
    for name, manifest in sorted(store["manifests"].items()):
        place = "" if name == store.get("active_manifest") else "of an ingredient: "
        assertions = manifest.get("assertions") if isinstance(manifest, dict) else None
        for assertion in assertions if isinstance(assertions, list) else []:
            label = str(assertion.get("label") if isinstance(assertion, dict) else "")
            if label.startswith(LABELS):
                yield _judge_assertion(label, assertion.get("data"), place)


def _judge_assertion(label: str, data: Any, place: str) -> Signal:
    """One assertion: its entries in words, reserved unless each of them allows."""
    entries = data.get("entries") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or not entries:
        return Signal("c2pa", f"{place}{label} without readable entries", "file", True)
    told, reserved = [], False
    for name, entry in sorted(entries.items()):
        use = entry.get("use") if isinstance(entry, dict) else entry
        told.append(f"{name}={str(use)[:40]}")
        reserved |= use != "allowed"
    return Signal("c2pa", f"{place}{label}: {', '.join(told)}"[:500], "file", reserved)


def _fault(text: str) -> Signal:
    return Signal("c2pa", text, "file", True)
