"""The doctor as a person calls it: in an empty folder, without a network, with a tracking server that is not there."""

import json

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_it_looks_at_everything_and_leaves_a_report(tmp_path, command_line):
    line = command_line(tmp_path)
    printed = line.run("doctor", "device=cpu")
    assert "Ready" in printed
    report = json.loads((tmp_path / "outputs/doctor.json").read_text())
    marks = {found["about"]: found["mark"] for found in report["findings"]}
    assert {marks[about] for about in ("versions", "outputs", "MLflow", "method lora", "fused loss")} == {"ok"}
    assert report["environment"]["torch"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["doctor.json"]


def test_what_would_make_jobs_fail_is_told_with_a_way_out(tmp_path, command_line):
    line = command_line(tmp_path)
    printed = line.run("doctor", "device=cpu", "tracking.uri=http://127.0.0.1:9", code=1)
    assert "Jobs will fail here: 1 fault to mend." in printed
    assert "tracking.uri" in printed
