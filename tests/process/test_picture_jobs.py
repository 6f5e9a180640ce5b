"""Questions about pictures, as real command lines on the embedded model."""

import json

import pytest
from PIL import Image
from tiny_vlm import write_questions

pytestmark = [pytest.mark.process, pytest.mark.slow]

SMALL = [
    "device=cpu",
    "task=vqa",
    "tracking=none",
    "task.test_rows=60",
    "task.general_rows=4",
    "task.general_pictures=4",
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, command_line):
    """LoRA at its default, and at a thousandth of that rate; and a few steps on pictures of somebody's own."""
    line = command_line(tmp_path_factory.mktemp("pictures"))
    line.run(*SMALL, "task.base_score=true", "hydra.run.dir=learns")
    line.run(*SMALL, "hparams.lr=1e-6", "hydra.run.dir=too-slow")
    path = write_questions(line.folder / "own")
    line.run(*SMALL, f"task.train_files={path}", "hparams.max_steps=4", "hydra.run.dir=own-files")
    return line


def test_the_default_learns_what_the_base_does_not_know_and_a_poor_rate_does_not(jobs):
    metrics = jobs.result("learns")["metrics"]
    assert metrics["base/exact_match"] < 0.4
    assert metrics["test/exact_match"] > 0.6  # 75% and more of all 400 items
    assert jobs.result("too-slow")["metrics"]["test/exact_match"] < 0.4


def test_what_was_forgotten_is_told_of_text_and_of_captions(jobs):
    assert {"forgetting_nats", "forgetting_caption_nats"} <= jobs.result("learns")["metrics"].keys()


def test_items_keep_their_picture_and_a_sheet_shows_both_models(jobs):
    items = [json.loads(text) for text in (jobs.folder / "learns" / "predictions.jsonl").read_text().splitlines()]
    assert len(items) == 60
    assert {"picture", "prompt", "target", "generated", "correct"} <= items[0].keys()
    with Image.open(jobs.folder / "learns" / "contact_sheet.png") as sheet:
        assert sheet.width == 608  # base, adapted and the picture


def test_own_pictures_are_read(jobs):
    result = jobs.result("own-files")
    assert (result["status"], result["steps"]) == ("ok", 4)
    assert {info["split"]: info["rows"] for info in result["datasets"]} == {"train": 20, "valid": 4, "test": 6}
