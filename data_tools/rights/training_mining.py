"""Training and data mining assertions in the Content Credentials (C2PA) of an image, read from its own bytes.

Assertions ``c2pa.training-mining`` (C2PA 1.x) and ``cawg.training-mining`` (CAWG, Training and data mining assertion
1.1) hold entries ``*.ai_generative_training``, ``*.ai_training``, ``*.data_mining``, ``*.ai_inference`` or others, each
allowed, notAllowed or constrained; constrained means notAllowed if nothing more is known. This project mines, trains
and runs inference, so every entry other than allowed reserves rights. Manifests of ingredients count as well.

The check fails closed: a manifest that is damaged, does not belong to these pixels, or is stored remotely reserves
rights, too. Nothing is fetched: no remote manifests, revocation lists or identities. There is no list of trusted
signers: a refusal counts whoever signed it, and "allowed" does not override the reservation of another signal.
"""

import functools
import io
import json
from collections.abc import Iterator
from typing import Any

from data_tools.rights.reservations import Signal
from data_tools.work.foreign_error import first_line

LABELS = ("c2pa.training-mining", "cawg.training-mining")
# A file without one of these has no manifest: the box type of a manifest store (C2PA 2.1, 11.1.4.2), parts of a store
# that lost its head, and the XMP property that points to a remote one.
MARK = b"c2pa"  # all of them begin with it
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
    """Read the manifests of an image.

    Args:
        raw: The file as it was fetched; encoding it again would remove the manifest.

    Returns:
        One signal of kind ``c2pa`` for each assertion and each fault of the manifest; none without a manifest.
    """
    marked = MARK in raw and any(mark in raw for mark in MARKS)
    if not marked and REMOTE not in raw:
        return []
    kind = next((name for start, name in TYPES.items() if raw.startswith(start)), None)
    if kind is None:
        return [_fault("a manifest in a file of a kind that is not read")] if marked else []
    try:
        store = _read_store(raw, kind)
    except _Unreadable as fault:
        return [_fault(first_line(fault))]
    if store is None:
        return [_fault("traces of a manifest that cannot be read")] if marked else []
    return list(_store_signals(store))


class _Unreadable(Exception):
    """A manifest exists, but cannot be relied on."""


@functools.cache
def _reader() -> tuple[Any, Any]:
    """Load the library and its settings once per process; it is large, and most images have no manifest."""
    import c2pa

    return c2pa, c2pa.Context.from_dict(SETTINGS)


def _read_store(raw: bytes, kind: str) -> dict[str, Any] | None:
    """Return all manifests with the library's validation results, or None if it finds no manifest."""
    library, context = _reader()
    try:
        with library.Reader(kind, io.BytesIO(raw), context=context) as reader:
            store = json.loads(reader.json())
    except library.C2paError.ManifestNotFound:
        return None
    except Exception as error:  # a native library may raise anything on hostile input
        text = first_line(error)
        if "remote manifest" in text:
            raise _Unreadable(f"its manifest lies elsewhere and is not fetched: {text.rpartition(' ')[2]}") from None
        raise _Unreadable(f"its manifest cannot be read: {text}") from None
    if not isinstance(store, dict) or not isinstance(store.get("manifests"), dict):
        raise _Unreadable("its manifest has no readable content")
    return store


def _store_signals(store: dict[str, Any]) -> Iterator[Signal]:
    state = store.get("validation_state")
    if state not in ("Valid", "Trusted"):
        codes = [str(status.get("code")) for status in store.get("validation_status") or [] if isinstance(status, dict)]
        yield _fault(
            f"its manifest does not hold ({state}): {', '.join(sorted(set(codes)))[:200] or 'no reason given'}"
        )
    for name, manifest in sorted(store["manifests"].items()):
        prefix = "" if name == store.get("active_manifest") else "of an ingredient: "
        assertions = manifest.get("assertions") if isinstance(manifest, dict) else None
        for assertion in assertions if isinstance(assertions, list) else []:
            label = str(assertion.get("label") if isinstance(assertion, dict) else "")
            if label.startswith(LABELS):
                yield _assertion_signal(label, assertion.get("data"), prefix)


def _assertion_signal(label: str, data: Any, prefix: str) -> Signal:
    """Return the signal of one assertion; it reserves rights unless every entry allows."""
    entries = data.get("entries") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or not entries:
        return Signal("c2pa", f"{prefix}{label} without readable entries", "file", True)
    uses, reserved = [], False
    for name, entry in sorted(entries.items()):
        use = entry.get("use") if isinstance(entry, dict) else entry
        uses.append(f"{name}={str(use)[:40]}")
        reserved |= use != "allowed"
    return Signal("c2pa", f"{prefix}{label}: {', '.join(uses)}"[:500], "file", reserved)


def _fault(text: str) -> Signal:
    return Signal("c2pa", text, "file", True)
