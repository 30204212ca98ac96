"""Where a job finds its files: in place, or in Snakemake's copies of a remote storage."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def placed(value: Any, files: Iterable[str | Path]) -> Any:
    """`value` with each path in it that is one of the input `files`, or a folder of some, where these are.

    Parameters name files as the study does; of a remote storage Snakemake keeps copies elsewhere
    (`.snakemake/storage/s3/BUCKET/...`), which only the input files know of. Dictionaries and lists are gone through;
    what has no slash is a name and stays.
    """
    files = [str(file) for file in files]
    if isinstance(value, dict):
        return {key: placed(one, files) for key, one in value.items()}
    if isinstance(value, list):
        return [placed(one, files) for one in value]
    if isinstance(value, str) and "/" in value:
        for file in files:
            head, found, tail = f"/{file}".rpartition(f"/{value}")
            if found and tail[:1] in ("", "/"):
                return f"{head}/{value}"[1:]
    return value
