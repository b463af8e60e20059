"""Source distributions of packages whose tests are run here, from the package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

__all__ = ["UNAVAILABLE", "unpack"]

#: Exit status where the index cannot be reached.
UNAVAILABLE = 77


def unpack(package: str, version: str | None = None) -> Path:
    """Return the directory of an unpacked source distribution, downloaded once.

    Args:
        version: The one that is installed here, without it; else the latest.

    Raises:
        ConnectionError: The index does not have it, or cannot be reached.
    """
    cache = Path(
        os.environ.get("MPCLUSTER_SDISTS", Path(tempfile.gettempdir(), "mpcluster-sdists"))
    )
    cache.mkdir(parents=True, exist_ok=True)
    if version is None:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = ""
    wanted = f"{package}=={version}" if version else package
    stem = re.sub(r"[-_.]+", "[-_.]", package)
    pattern = re.compile(
        rf"{stem}-{re.escape(version) if version else '.*'}\.tar\.gz", re.IGNORECASE
    )
    archive = _find(cache, pattern)
    if archive is None:
        options = ("--no-deps", "--no-binary", ":all:", "-q", "-d", str(cache))
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, wanted],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        archive = _find(cache, pattern)
        if archive is None:
            raise ConnectionError(f"{wanted} cannot be downloaded:\n{done.stderr}")
    directory = cache / archive.name.removesuffix(".tar.gz")
    if not directory.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(cache, filter="data")
    return directory


def _find(cache: Path, pattern: re.Pattern[str]) -> Path | None:
    return next((file for file in cache.iterdir() if pattern.fullmatch(file.name)), None)
