"""Download the images of a table of links with img2dataset and write final shards.

    python data_tools/download_shards.py --table links.parquet --output shards --agent-contact https://lab.example/bot
    python data_tools/download_shards.py --folder images --output shards
    python data_tools/download_shards.py --table links.parquet --output shards ... --retry-failed

There are two passes. First, img2dataset distributes the links in parts, and data_tools/download/download_worker.py
fetches them into ``OUTPUT.work``, within rate and size limits, checking rights reserved in the headers of every hop; a
killed run continues there. Then every image is checked and repaired (data_tools/samples/image_repair.py), and shards
are written in the order of the table. The key of a sample is its row in the table. The same table, answers and settings
give the same tar files, byte for byte: times are in ledger.parquet, and in the samples (``fetched_at``) only with
--record-time. ``ledger.parquet`` has one row for every row of the table: kept or not, by which rule, and the evidence.

Origins that screen_links has screened (its origins.jsonl and summary.json lie beside the table, with digests of this
table) are not screened again, and the legal bases are those it decided. Of any other table, the column ``legal_basis``
is a claim that lifts no reservation unless --sources trusts the table by name, and every origin is asked for its
robots.txt, tdmrep.json, ai.txt and trust.txt. So are, in any case, origins that redirects lead to.

--retry-failed fetches the links again that failed for a temporary reason (rule ``download``), and builds the shards
anew from the earlier and the new samples. Bytes and Merkle root are those of a run in which all of them succeeded at
once. What withdraw_samples took out of shards beside OUTPUT (their ``*.blocklists``) does not come back: not from the
same address in any spelling, nor as the same file or a copy of the image from another address.

--slice I/N fetches every N-th part only and writes no shards: see configs/clusters/slurm_download.sh. A proxy of the
environment (http_proxy, https_proxy, all_proxy) is used only if --allow-proxy names it: it resolves names itself, and
must refuse private addresses itself. Hosts of --allow-private are asked without a proxy.
"""

import logging
import sys

from leam_mm.errors import run


def main(args: list[str] | None = None) -> None:
    """Run the program. The imports are here, because each worker process imports this file, too, and needs less."""
    from data_tools.download.image_download import DownloadSettings, download_images
    from leam_mm.command_line import parse_settings

    download_images(parse_settings(DownloadSettings, __doc__, args))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
