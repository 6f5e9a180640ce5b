"""Outputs that a peftsweep before its redesign left: a fair sweep, single jobs, published rows and their MLflow store.

outputs.json.gz holds each text file by its path, and the store as SQL; `/OUTPUTS` stands for the folder they are in.
Adapters, pictures and logs were left out, and what the old `report` and `recommend` said is beside it.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent


@pytest.fixture(scope="session")
def old_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `outputs/`, as it was."""
    folder = tmp_path_factory.mktemp("golden") / "outputs"
    files = json.loads(gzip.decompress((GOLDEN / "outputs.json.gz").read_bytes()))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("/OUTPUTS", str(folder)), encoding="utf-8")
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.executescript((folder / "mlflow.sql").read_text())
    (folder / "mlflow.sql").unlink()
    return folder
