"""The studies' runs in a local store. Creating MLflow's tables takes seconds: one database, an experiment a test."""

import logging
import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from peftsweep.errors import TrackingError
from peftsweep.records.results import JobResult, Status, save_result
from peftsweep.tracking.restore import import_jobs
from peftsweep.tracking.store import Store, open_store
from peftsweep.tracking.study_runs import StudyRuns, close_lost_runs, open_studies
from peftsweep.tracking.summary import Score, StudySummary
from peftsweep.tracking.tracker import open_tracker

TAGS = {"method": "lora", "model": "pocket-llama", "task": "metamath"}
STUDY = "monday/lora"
RUN_NAME = "lora (monday)"  # what MLflow shows
SPACE: dict[str, BaseDistribution] = {
    "hparams.lr": FloatDistribution(1e-5, 1e-2, log=True),
    "method.capacity": IntDistribution(4, 64),
}
SUMMARY = StudySummary(
    objective="valid/loss",
    constraint="memory<=12GB",
    best_settings={"hparams.lr": 0.003, "method.capacity": 16},
    best_objective=0.81,
    trials={Status.OK: 12, Status.PRUNED: 3, Status.OOM: 1},
    tokens=1_200_000,
    confirmed={"test/accuracy": Score(0.41, 0.38, 0.44, 3)},
    costs={"forgetting_nats": 0.02},
    default={"test/accuracy": Score(0.35, 0.32, 0.38, 3)},
    importance={"hparams.lr": 0.8, "method.capacity": 0.2},
    remarks=["hparams.lr is best at the end of its range."],
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return request.node.name


@pytest.fixture
def store(uri: str, experiment: str) -> Store:
    return open_store(uri, experiment)


@pytest.fixture
def runs(uri: str, experiment: str) -> StudyRuns:
    return open_studies(uri, experiment, {STUDY: TAGS})


def a_study(*values: float | None, space: dict[str, BaseDistribution] = SPACE) -> optuna.Study:
    """A trial for each value; None is a pruned one."""
    draw = random.Random(0)
    study = optuna.create_study()
    for value in values:
        params: dict[str, Any] = {"hparams.lr": 10 ** draw.uniform(-5, -2), "method.capacity": draw.choice([4, 16, 64])}
        params = {key: params[key] if key in params else draw.choice(d.choices) for key, d in space.items()}
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=space))
    return study


def children(store: Store, parent: str) -> list[Any]:
    return list(store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"))


def begin(store: Store, experiment: str, folder: Path, parent: str | None) -> str:
    tracker = open_tracker(
        uri=store.uri, experiment=experiment, run_name="trial", folder=folder, tags={}, parent_run_id=parent
    )
    assert tracker.run_id is not None
    return tracker.run_id


def history(store: Store, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in store.client.get_metric_history(run_id, key)]


def test_each_study_has_a_run_that_says_what_it_is(store: Store, runs: StudyRuns) -> None:
    run = store.client.get_run(runs.run_ids[STUDY])
    wanted = {f"peftsweep.{key}": value for key, value in {**TAGS, "stage": "study", "study": STUDY}.items()}
    assert wanted.items() <= run.data.tags.items()
    assert (run.info.run_name, run.info.status) == (RUN_NAME, "RUNNING")


def test_a_resumed_sweep_finds_its_studies(uri: str, experiment: str, store: Store, runs: StudyRuns) -> None:
    runs.finish(interrupted=True)
    assert store.client.get_run(runs.run_ids[STUDY]).info.status == "KILLED"
    again = open_studies(uri, experiment, {STUDY: TAGS, "monday/oft": {**TAGS, "method": "oft"}})
    assert again.run_ids[STUDY] == runs.run_ids[STUDY]
    assert store.client.get_run(runs.run_ids[STUDY]).info.status == "RUNNING"
    assert len(store.client.search_runs([store.experiment_id])) == 2
    again.finish()
    assert store.client.get_run(runs.run_ids[STUDY]).info.status == "FINISHED"


def test_a_study_with_other_tags_is_another_study(uri: str, experiment: str, runs: StudyRuns) -> None:
    assert open_studies(uri, experiment, {STUDY: {**TAGS, "model": "other"}}).run_ids != runs.run_ids


def test_jobs_nest_under_their_study(store: Store, experiment: str, runs: StudyRuns, tmp_path: Path) -> None:
    job = begin(store, experiment, tmp_path, runs.run_ids[STUDY])
    assert [run.info.run_id for run in children(store, runs.run_ids[STUDY])] == [job]


def test_a_job_whose_study_is_not_in_the_store_stands_alone(
    store: Store, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = begin(store, experiment, tmp_path, "0" * 32)
    assert "mlflow.parentRunId" not in store.client.get_run(job).data.tags
    assert "stands alone" in caplog.text


def test_the_run_holds_what_the_study_found(store: Store, runs: StudyRuns, tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    journal.write_text("{}\n")
    runs.log_study(
        STUDY,
        optuna_study=a_study(*[1.0 - i / 50 for i in range(12)]),
        summary=SUMMARY,
        files=[journal],
        draw=lambda folder: (folder / "history.png").write_bytes(b"a picture"),
    )
    run_id = runs.run_ids[STUDY]
    data = store.client.get_run(run_id).data
    assert data.params == {"hparams.lr": "0.003", "method.capacity": "16"}
    expected = {"trials_ok": 12, "trials_pruned": 3, "trials_oom": 1, "trials_failed": 0, "tokens": 1_200_000}
    assert {key: data.metrics[f"study/{key}"] for key in expected} == expected
    assert (data.metrics["test/accuracy"], data.metrics["study/default/test/accuracy"]) == (0.41, 0.35)
    assert data.metrics["forgetting_nats"] == 0.02
    assert data.tags["peftsweep.interval95.test/accuracy"] == "0.38 to 0.44"
    judged = {"peftsweep.objective": "valid/loss", "peftsweep.constraint": "memory<=12GB"}
    assert judged.items() <= data.tags.items()
    assert data.metrics["study/importance/hparams.lr"] == 0.8
    note = data.tags["mlflow.note.content"]
    assert all(text in note for text in ("`hparams.lr=0.003`", "0.41 (95%: 0.38 to 0.44, 3 seeds)", *SUMMARY.remarks))
    plots = {Path(item.path).name for item in store.client.list_artifacts(run_id, "plots")}
    assert plots == {"history.png"}
    assert "study.journal" in {item.path for item in store.client.list_artifacts(run_id)}


def test_the_history_has_each_trial_once_and_the_best_so_far(
    uri: str, experiment: str, store: Store, runs: StudyRuns
) -> None:
    study = a_study(0.9, None, 0.8)
    runs.log_study(STUDY, optuna_study=study, summary=SUMMARY)
    study.add_trial(create_trial(value=0.85))
    runs.log_study(STUDY, optuna_study=study, summary=SUMMARY)
    open_studies(uri, experiment, {STUDY: TAGS}).log_study(STUDY, optuna_study=study, summary=SUMMARY)
    run_id = runs.run_ids[STUDY]
    assert history(store, run_id, "study/objective") == [(0, 0.9), (2, 0.8), (3, 0.85)]
    assert history(store, run_id, "study/best_objective") == [(0, 0.9), (2, 0.8), (3, 0.8)]


def test_a_trial_beyond_a_limit_is_not_the_best(store: Store, runs: StudyRuns) -> None:
    study = a_study(0.9)
    study.add_trial(create_trial(value=0.5, constraints={"memory": 1.0}))
    runs.log_study(STUDY, optuna_study=study, summary=SUMMARY)
    assert history(store, runs.run_ids[STUDY], "study/best_objective") == [(0, 0.9)]


def test_a_later_best_is_told_although_parameters_stay(store: Store, runs: StudyRuns) -> None:
    runs.log_study(STUDY, optuna_study=a_study(0.9), summary=SUMMARY)
    better = replace(SUMMARY, best_settings={"hparams.lr": 0.001, "method.capacity": 16})
    runs.log_study(STUDY, optuna_study=a_study(0.9), summary=better)
    data = store.client.get_run(runs.run_ids[STUDY]).data
    assert (data.params["hparams.lr"], data.tags["peftsweep.best.hparams.lr"]) == ("0.003", "0.001")
    assert "earlier best" in data.tags["mlflow.note.content"]


def test_a_study_without_a_good_trial_is_logged(store: Store, runs: StudyRuns) -> None:
    runs.log_study(STUDY, optuna_study=a_study(None, None), summary=StudySummary("valid/loss"))
    data = store.client.get_run(runs.run_ids[STUDY]).data
    assert (data.params, data.metrics["study/trials_ok"]) == ({}, 0)
    assert "No settings found" in data.tags["mlflow.note.content"]


def test_runs_of_dead_jobs_are_closed_and_others_left(
    store: Store, experiment: str, runs: StudyRuns, tmp_path: Path
) -> None:
    parent = runs.run_ids[STUDY]
    dead, alive, ended, elsewhere = (begin(store, experiment, tmp_path, p) for p in (parent, parent, parent, None))
    store.client.set_terminated(ended)
    assert close_lost_runs(store.uri, experiment, [parent], {alive}) == [dead]
    found = {run_id: store.client.get_run(run_id) for run_id in (dead, alive, ended, elsewhere)}
    assert [run.info.status for run in found.values()] == ["FAILED", "RUNNING", "FINISHED", "RUNNING"]
    tags = found[dead].data.tags
    assert (tags["peftsweep.status"], tags["peftsweep.cause"]) == ("failed", "its process died")
    assert close_lost_runs(store.uri, experiment, [parent], {alive}) == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_down_costs_the_sweep_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    runs = open_studies(f"http://127.0.0.1:{closed_port()}", "any", {STUDY: TAGS})
    runs.log_study(STUDY, optuna_study=a_study(0.9, 0.8), summary=SUMMARY)
    runs.finish()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert runs.run_ids == {}
    assert "goes on without MLflow" in warning


def test_a_server_that_dies_halfway_costs_one_warning_and_one_wait(
    runs: StudyRuns, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Gone:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            raise ConnectionRefusedError(111, "Connection refused")

    assert runs._store is not None
    runs._store = replace(runs._store, client=Gone())  # type: ignore[arg-type]
    runs.log_study(STUDY, optuna_study=a_study(0.9, 0.8), summary=SUMMARY)
    runs.finish()
    assert calls == ["get_run"]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_closing_lost_runs_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    assert close_lost_runs(f"http://127.0.0.1:{closed_port()}", "any", ["0" * 32], set()) == []
    assert "could not be closed" in caplog.text


def test_a_wrong_address_is_an_error_before_the_sweep() -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri"):
        open_studies("htpp://host", "any", {STUDY: TAGS})


def a_job(folder: Path, seed: int, parent: str | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    result = JobResult(
        status=Status.OK,
        method="lora",
        model="pocket-llama",
        task="metamath",
        seed=seed,
        study=STUDY,
        metrics={"time/job_seconds": 60.0},
        started_at=f"2026-08-01T10:0{seed}:00+00:00",
        config={
            "hparams": {"lr": 0.1, "max_steps": 7},
            "tracking": {"parent_run_id": parent, "params": ["hparams.lr"]},
        },
    )
    save_result(replace(result, **changes), folder)
    return folder


def test_imported_jobs_nest_under_one_study_run(uri: str, experiment: str, store: Store, tmp_path: Path) -> None:
    jobs = [a_job(tmp_path / f"job {seed}", seed, parent="0" * 32) for seed in range(2)]
    import_jobs([jobs[0]], uri=uri, experiment=experiment)
    import_jobs([tmp_path], uri=uri, experiment=experiment)
    runs = store.client.search_runs([store.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("peftsweep.stage") == "study"]
    assert {run.info.run_name for run in children(store, parent.info.run_id)} == {"lora job 0", "lora job 1"}
    assert (parent.info.run_name, parent.info.status, len(runs)) == (RUN_NAME, "FINISHED", 3)


def test_a_study_run_made_by_import_lasts_from_its_first_job_to_its_last(
    uri: str, experiment: str, store: Store, tmp_path: Path
) -> None:
    for seed in range(3):
        a_job(tmp_path / f"job {seed}", seed)
    import_jobs([tmp_path], uri=uri, experiment=experiment)
    (parent,) = store.client.search_runs([store.experiment_id], "tags.`peftsweep.stage` = 'study'")
    assert parent.info.end_time - parent.info.start_time == 3 * 60_000


def test_imported_jobs_nest_under_the_sweeps_own_run(
    uri: str, experiment: str, store: Store, runs: StudyRuns, tmp_path: Path
) -> None:
    a_job(tmp_path / "job", 0, parent=runs.run_ids[STUDY])
    import_jobs([tmp_path], uri=uri, experiment=experiment)
    (child,) = children(store, runs.run_ids[STUDY])
    assert child.data.params == {"hparams.lr": "0.1"}
    assert len(store.client.search_runs([store.experiment_id])) == 2


def test_an_imported_job_of_no_study_stands_alone(uri: str, experiment: str, store: Store, tmp_path: Path) -> None:
    a_job(tmp_path / "job", 0, study=None)
    import_jobs([tmp_path], uri=uri, experiment=experiment)
    (run,) = store.client.search_runs([store.experiment_id])
    assert "mlflow.parentRunId" not in run.data.tags


def test_a_picture_that_cant_be_drawn_stops_nothing(store: Store, runs: StudyRuns) -> None:
    def draw(folder: Path) -> None:
        raise OSError(f"no room left in {folder}")

    runs.log_study(STUDY, optuna_study=a_study(0.9, 0.8), summary=SUMMARY, draw=draw)
    assert history(store, runs.run_ids[STUDY], "study/objective") == [(0, 0.9), (1, 0.8)]
