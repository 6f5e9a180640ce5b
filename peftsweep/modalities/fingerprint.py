"""Which weights these are: the hub's commit, or a fingerprint of a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

# What a fingerprint reads of a weight file: all of it up to this size, else a sample of each MiB.
WHOLE_FILE_BYTES = 64 * 2**20
SAMPLE_EVERY_BYTES, SAMPLE_BYTES = 2**20, 4096


def revision_of(location: str, revision: str | None = None) -> str:
    """Which weights have been loaded from a folder or hub id: a fingerprint of the folder, or the hub's commit.

    revision: the branch, tag or commit that was asked for. The commit is that of the hub's cache, where it leads.
    """
    if Path(location).is_dir():
        return fingerprint_folder(Path(location))
    cached = try_to_load_from_cache(location, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision or "main"


def fingerprint_folder(folder: Path) -> str:
    """Fingerprint of a model's weights and tokenizer, the same wherever the folder lies.

    Of a large file, a sample of each MiB is read: training changes nearly every number of what it trains, and 100 GB
    must not take minutes.
    """
    digest = hashlib.sha256()
    patterns = ("*.safetensors", "*.bin", "config.json", "tokenizer*", "*.jinja")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for block in _sampled_blocks(path):
            digest.update(block)
    return digest.hexdigest()[:40]


def _sampled_blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= WHOLE_FILE_BYTES:
            yield stream.read()
            return
        for start in range(0, size, SAMPLE_EVERY_BYTES):
            stream.seek(start)
            yield stream.read(SAMPLE_BYTES)
