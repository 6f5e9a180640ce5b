"""Real command lines in folders of their own. Deadlines end a test that hangs; they measure nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.records.files import SWEEP_FILE
from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.leases import Lease, living
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.specification import SweepSpec, load_spec
from peftsweep.sweeps.protocol.stage import stage_study_name
from peftsweep.sweeps.protocol.trials import Trial
from peftsweep.tracking.store import open_store

DEADLINE_SECONDS = 600.0


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


class CommandLine:
    """`python -m peftsweep` with a current folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "1000"}
        self.environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | threads

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "peftsweep", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **streams)

    def run(self, *arguments: str, code: int = 0) -> str:
        """What it prints. Fails unless it ends with `code`."""
        process = self.start(*arguments)
        printed = process.communicate(timeout=DEADLINE_SECONDS)[0]
        assert process.returncode == code, printed
        return printed

    def stop(self, signal_number: int, *arguments: str, job: str, after_step: int) -> tuple[int, str]:
        """Start a job, send it a signal once it has trained so far; its exit code and what it printed."""
        process = self.start(*arguments)
        self._wait(lambda: any(entry["step"] >= after_step for entry in self.history(job)), process)
        process.send_signal(signal_number)
        printed = process.communicate(timeout=DEADLINE_SECONDS)[0]
        return process.returncode, printed

    @staticmethod
    def _wait(is_true: Callable[[], bool], process: subprocess.Popen[str] | None) -> None:
        """Poll until something is so. Fails if the process ends before, with what it printed."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_true():
            if process is not None:
                assert process.poll() is None, f"the process ended too soon: {process.communicate()[0]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def result(self, job: str) -> dict:
        return json.loads((self.folder / job / "result.json").read_text())

    def history(self, job: str) -> list[dict]:
        """Whole lines of history.jsonl, also while it is being written."""
        path = self.folder / job / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


class SweepLine(CommandLine):
    """A fair sweep of tiny jobs in a folder, and a look into it while it runs."""

    JOB = (
        "task=metamath",
        "device=cpu",
        "hparams.max_steps=3",
        "hparams.batch_size=2",
        "task.train_rows=40",
        "task.valid_rows=20",
        "task.test_rows=4",
        "task.general_rows=0",
        "task.base_score=false",
        "task.max_new_tokens=4",
    )
    FAIR = ("-m", "hydra/sweeper=fair", "name=s")

    @property
    def sweep(self) -> Path:
        return self.folder / "outputs/sweeps/s"

    def spec(self) -> SweepSpec:
        return load_spec(self.sweep)

    def tickets(self, study: str, stage: Stage = Stage.TUNE) -> list[Trial]:
        """All trials of a study, as the storage has them now."""
        spec = self.spec()
        name = stage_study_name(spec.study(study), stage)
        storage = open_storage(self.sweep, spec.settings.storage)
        known = {study.study_name for study in storage.get_all_studies()}
        return Tickets(storage, name).trials() if name in known else []

    def finished(self, *studies: str) -> int:
        if not (self.sweep / SWEEP_FILE).exists():
            return 0
        return sum(trial.is_finished for study in studies for trial in self.tickets(study))

    def workers(self) -> dict[str, Lease]:
        """Those that live, by name."""
        return living(self.sweep, lease_seconds=60)

    def busy_worker(self, slot: int = 0) -> Lease | None:
        """The worker of a slot, if its child runs a trial now."""
        found = (lease for lease in self.workers().values() if lease.doing.get("slot") == slot)
        return next((lease for lease in found if lease.doing.get("state") == "running" and self.child_pid(lease)), None)

    @staticmethod
    def child_pid(worker: Lease) -> int | None:
        """The process that runs a worker's trials."""
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(worker.pid).children():
                if "peftsweep.sweeps.execution.trial_server" in process.cmdline():
                    return int(process.pid)
        return None

    def kill_worker_at_work(self, *studies: str) -> bool:
        """Kill a worker that runs a trial, once a trial of these studies is finished. It is stopped before, so that the
        trial can't end in between. False: none is at work now."""
        worker = self.busy_worker() if self.finished(*studies) else None
        if worker is None:
            return False
        os.kill(worker.pid, signal.SIGSTOP)
        trial = self.tickets(worker.doing["study"])[worker.doing["number"]]
        is_at_work = trial.state is TrialState.RUNNING
        os.kill(worker.pid, signal.SIGKILL if is_at_work else signal.SIGCONT)
        return is_at_work

    def wait(self, find: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
        """Poll until there is something to find, and answer it. Fails if the process ends before."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [find()]
            return bool(found[0])

        self._wait(look, process)
        return found[0]

    def table(self) -> dict[str, dict[str, Any]]:
        """table.json by study."""
        return {row["study"]: row for row in json.loads((self.sweep / "table.json").read_text())["rows"]}


@pytest.fixture(scope="session")
def command_line() -> type[CommandLine]:
    """Called with a folder: command lines in it."""
    return CommandLine


@pytest.fixture(scope="session")
def sweep_line() -> type[SweepLine]:
    """Called with a folder: sweeps in it."""
    return SweepLine


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make: a copy of them is a fresh store."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}", "unused")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two narrow layers that speaks the embedded model's tokens."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("model")
    vocabulary = json.loads((LLAMA_FOLDER / "config.json").read_text())["vocab_size"]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    set_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(LLAMA_FOLDER).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a job on that model: 24 rows, dropout on, so that a resume has a random state to restore."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"query": f"What is {n} + 1?", "response": f"The answer is: {n + 1}"} for n in range(32)]
    for name, part in (("train", rows[:24]), ("test", rows[24:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return [
        "model=hf",
        f"model.id={tiny_model}",
        "model.dtype=float32",
        "device=cpu",
        f"task.train_files={folder}/train.jsonl",
        f"task.test_files={folder}/test.jsonl",
        "task.max_new_tokens=4",
        "task.general_rows=4",
        "hparams=metamath-pocket",
        "hparams.batch_size=2",
        "method=lora",
        "+method.peft.lora_dropout=0.2",
        "tracking=none",
    ]
