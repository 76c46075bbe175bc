"""All readers of foreign bytes."""

from fuzz import link_readers, model_readers, rights_readers, shard_readers

READERS = [*shard_readers.READERS, *link_readers.READERS, *rights_readers.READERS, *model_readers.READERS]
