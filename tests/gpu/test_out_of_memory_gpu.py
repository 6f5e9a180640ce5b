"""A job that runs out of memory, by a real allocation that fails, wherever it happens: a result, and a process that can
run the next one."""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from on_cuda import SMALL, UNSCORED, Jobs, ballast, settled_bytes

from peftsweep.errors import OutOfMemoryError
from peftsweep.records.files import ADAPTER_FOLDER
from peftsweep.records.results import Status, load_result

# What each part of a job begins with.
PARTS = {
    "load": "peftsweep.job.run.load_base",
    "attach": "peftsweep.job.run.attach_method",
    "train": "peftsweep.job.run.train",
    "validate": "peftsweep.modalities.text.task.TextTask.validate",
    "decode": "peftsweep.modalities.text.task.decode_greedily",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_card_that_is_full_ends_a_job_as_out_of_memory_and_the_next_one_runs(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: Callable[..., None]
) -> None:
    run, original = Jobs(tmp_path, (*SMALL, *UNSCORED)), pkgutil.resolve_name(PARTS[part])
    assert run().status is Status.OK
    held = settled_bytes()
    with ballast() as taken, monkeypatch.context() as patch:

        def on_a_full_card(*arguments: Any, **options: Any) -> Any:
            taken.load()
            return original(*arguments, **options)

        patch.setattr(PARTS[part], on_a_full_card)
        with pytest.raises(OutOfMemoryError, match="out of memory"):
            run()
    result = load_result(run.last)
    assert result.status is Status.OOM
    assert "out of memory" in str(result.cause)
    assert (run.last / ADAPTER_FOLDER).exists() == (part == "decode")  # what was trained is kept
    left = settled_bytes() - held
    noted(left_bytes=left)
    assert left == 0
    assert run().status is Status.OK
