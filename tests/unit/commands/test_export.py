"""`peftsweep export`: its words, its refusals, what it prints."""

import re

import pytest
from job_writer import write_sweep

from peftsweep.commands.export_weights import find_job, parse_rank, run
from peftsweep.errors import ConfigError, DataError


@pytest.mark.parametrize(("text", "rank"), [("8", 8), ("1", 1), ("0.95", 0.95)])
def test_a_rank_is_a_whole_number_or_a_share(text, rank):
    assert parse_rank(text) == rank
    assert type(parse_rank(text)) is type(rank)


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "1.5", "0.0", "many", ""])
def test_other_ranks_are_refused(text):
    with pytest.raises(ConfigError, match="rank must be"):
        parse_rank(text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("lora", "job", "rnk=4"), "Did you mean rank?"),
        (("adapter", "job", "rank=4"), "has no such setting"),
        (("lora", "job", "rank"), "must be written key=value"),
    ],
)
def test_a_setting_that_an_export_lacks_is_refused(words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        run(list(words))


def test_an_adapter_goes_below_the_job_unless_a_folder_is_named(finished, tmp_path, capsys):
    folder = finished("lora")
    assert run(["adapter", str(folder)]) == 0
    assert (folder / "export" / "adapter" / "adapter_model.safetensors").exists()
    assert run(["adapter", str(folder), f"folder={tmp_path / 'here'}"]) == 0
    assert (tmp_path / "here" / "README.md").exists()
    assert str(tmp_path / "here") in capsys.readouterr().out


def test_the_score_before_and_after_is_shown(finished, tmp_path, capsys):
    assert run(["lora", str(finished("miss")), f"folder={tmp_path / 'out'}", "rank=64"]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed
    assert "after" in printed
    assert "test/loss" in printed


def test_the_benchmark_s_files_are_named(finished, tmp_path, capsys):
    assert run(["hf", str(finished("lora")), f"folder={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "MetaMathQA/results/lora--pocket-llama-rank32-lr0.003.json" in printed
    assert (tmp_path / "MetaMathQA/experiments/lora/pocket-llama-rank32-lr0.003/adapter_config.json").exists()


BETTER, WORSE = [1] * 36 + [0] * 4, [1] * 10 + [0] * 30


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """outputs/sweeps/s: lora, of which seed 2 validated best, is better than oft."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "sweeps" / "s"
    write_sweep(folder, {"lora": {1: BETTER, 2: BETTER}, "oft": {1: WORSE, 2: WORSE}})
    path = folder / "lora" / "best-seed-2" / "result.json"
    path.write_text(path.read_text().replace('"valid/loss": 0.5', '"valid/loss": 0.4'))
    return folder


@pytest.mark.parametrize("named", ["s", "outputs/sweeps/s", "s/lora", "outputs/sweeps/s/lora"])
def test_of_a_sweep_and_of_a_study_the_winner_is_taken_and_told(sweep, named, capsys):
    assert find_job(named).resolve() == sweep / "lora" / "best-seed-2"
    assert capsys.readouterr().out == "job: outputs/sweeps/s/lora/best-seed-2\n"


def test_of_a_study_that_did_not_win_its_own_best_is_taken(sweep):
    assert find_job("s/oft").resolve() == sweep / "oft" / "best-seed-1"


def test_a_job_is_taken_as_it_was_named(sweep):
    assert find_job("s/lora/0000").resolve() == sweep / "lora" / "0000"


@pytest.mark.parametrize("named", ["s", "s/lora"])
def test_without_confirm_jobs_there_is_no_winner(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "outputs" / "sweeps" / "s", {"lora": {}})
    with pytest.raises(DataError, match=r"confirm.*without confirm\.seeds=0"):
        find_job(named)


def test_a_sweep_without_a_method_above_the_base_has_no_winner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "outputs" / "sweeps" / "s", {"lora": {1: [0] * 40, 2: [0] * 40}}, base=[0] * 40)
    with pytest.raises(DataError, match="Nobody is recommended"):
        find_job("s")


def test_of_two_models_a_study_must_be_named(sweep):
    for path in (sweep / "oft").glob("best-*/result.json"):
        path.write_text(path.read_text().replace("pocket-llama", "llama"))
    with pytest.raises(ConfigError, match="Name a study: s/"):
        find_job("s")


def test_a_misspelt_sweep_is_answered_with_the_nearest(sweep):
    sweep.rename(sweep.parent / "metamath")
    with pytest.raises(DataError, match="Did you mean metamath"):
        find_job("metamth")
