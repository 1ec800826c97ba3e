"""Real key sequences, read from the folder that EMBEDKEEP_DATA names."""

import csv
import gzip
import os
from pathlib import Path

SEQUENCES = {
    "cache2k web07": "traces_cache2k_web07.csv.gz",
    "cache2k orm-busy": "traces_cache2k_orm_busy_500k.csv.gz",
    "scarab recs": "traces_scarab_recs_0_600k.csv.gz",
    "mooncake conversation": "traces_mooncake_conversation_a.csv.gz",
}
"""Name to file. All are traces of other caches: nobody publishes one of an embedding cache."""


def folder() -> Path:
    """Where the traces lie.

    Raises:
        SystemExit: EMBEDKEEP_DATA is not set; says what it is.
    """
    if not (named := os.environ.get("EMBEDKEEP_DATA")):
        raise SystemExit(
            "EMBEDKEEP_DATA is not set: name a folder with " + ", ".join(SEQUENCES.values())
        )
    return Path(named)


def keys(file: Path) -> list[int]:
    """The column `key` of a trace, in its order."""
    with gzip.open(file, "rt", newline="") as lines:
        return [int(row["key"]) for row in csv.DictReader(lines)]
