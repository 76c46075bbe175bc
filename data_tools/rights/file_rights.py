"""Rights that an image file itself states: Content Credentials and embedded metadata.

Only the original bytes carry them; an image that was encoded again has lost both. image_repair_pool.py therefore reads
them during the download; the vetting rule file_rights_rule.py reads them in shards that store the original bytes.
"""

from data_tools.rights.iptc_rights import metadata_signals
from data_tools.rights.reservations import Signal
from data_tools.rights.training_mining import mining_signals


def rights_in_file(raw: bytes) -> list[Signal]:
    """Return every rights signal in the bytes of an image; ``reservations.decide`` says which of them forbids its use.

    Args:
        raw: The file as it was fetched.
    """
    return mining_signals(raw) + metadata_signals(raw)
