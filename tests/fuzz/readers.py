"""All readers of foreign bytes."""

from fuzz import audit_readers, foreign_readers, link_readers, model_readers, rights_readers, shard_readers

READERS = [
    *shard_readers.READERS,
    *link_readers.READERS,
    *rights_readers.READERS,
    *model_readers.READERS,
    *foreign_readers.READERS,
    *audit_readers.READERS,
]
