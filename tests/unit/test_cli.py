"""What is asked for wrongly: each mistake gets a message, an exit code, and leaves nothing that looks complete.

Jobs run in this process, on a random Llama of two narrow layers and a handful of rows.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import rich

from peftsweep import __version__
from peftsweep.__main__ import main
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.records.results import JobResult, Status

HEAVY = {"torch", "transformers", "peft", "mlflow", "datasets"}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a random Llama that speaks the embedded model's tokens."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("model")
    vocabulary = json.loads((LLAMA_FOLDER / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    set_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(LLAMA_FOLDER).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def fresh_command_line(tmp_path, monkeypatch):
    """Each command line in its own folder; Hydra's logging and environment don't reach the next test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["peftsweep"])
    monkeypatch.setenv("COLUMNS", "1000")  # messages whole
    monkeypatch.setattr(rich, "_console", None)
    # Libraries keep the error stream of the test that imported them first, which is closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def job(tiny_model, tmp_path):
    """The command line of a good small job in the folder `job`; later settings win."""
    rows = [{"query": f"What is {n} + 1?", "response": f"The answer is: {n + 1}"} for n in range(20)]
    train, test = write_rows(tmp_path / "train.jsonl", rows[:16]), write_rows(tmp_path / "test.jsonl", rows[16:])
    model = ["model=hf", f"model.id={tiny_model}", "model.dtype=float32", "device=cpu"]
    task = [f"task.train_files={train}", f"task.test_files={test}", "task.general_rows=0", "task.max_new_tokens=2"]
    hparams = ["hparams=metamath-pocket", "hparams.max_steps=2", "hparams.batch_size=2"]
    return [*model, *task, *hparams, "tracking=none", "hydra.run.dir=job"]


class Told:
    """What a command line answered: its exit code, and all it printed on one line."""

    def __init__(self, capfd):
        self._capfd = capfd

    def __call__(self, arguments):
        self._capfd.readouterr()
        try:
            self.code = main(list(arguments))
        except SystemExit as error:  # a job's own failure, or argparse
            self.code = error.code
        printed = self._capfd.readouterr()
        self.out = printed.out
        self.text = " ".join((printed.out + printed.err).split())
        return self


@pytest.fixture
def run(capfd):
    return Told(capfd)


def status_in(folder: Path = Path("job")) -> str | None:
    path = folder / "result.json"
    return json.loads(path.read_text())["status"] if path.exists() else None


def assert_nothing_looks_complete():
    assert [path for path in Path().rglob("result.json") if status_in(path.parent) == "ok"] == []
    assert list(Path().rglob("*.partial*")) == []


def test_a_good_job_ends_with_zero_and_a_table(run, job):
    """The counterpart of every test below: without the mistake, the same command line succeeds."""
    told = run(job)
    assert told.code == 0, told.text
    assert "test accuracy" in told.text
    assert status_in() == "ok"


CONFIG_MISTAKES = {
    "an unknown setting": (["hparams.learning_rate=1"], ["no such setting", "'hparams.learning_rate'"]),
    "a misspelt setting": (["hparams.max_step=1"], ["Did you mean hparams.max_steps"]),
    "a misspelt top-level setting": (["sede=1"], ["Did you mean seed"]),
    "a misspelt group": (["metod=lora"], ["Did you mean method"]),
    "a wrong type": (["hparams.max_steps=many"], ["hparams.max_steps must be a whole number", "'many'"]),
    "a wrong flag": (["hparams.amp=maybe"], ["hparams.amp must be true or false"]),
    "an unknown method": (["method=loraa"], ["no method of this name", "'loraa'", "lora"]),
    "a method for no modality": (["method.modalities=[]"], ["lora must name the modalities", "modalities: [text]"]),
    "a method for an unknown modality": (["method.modalities=[txt]"], ["must name the modalities", "'txt'"]),
    "an unknown method in a grid": (["-m", "method=lora,oftt"], ["no method of this name", "'oftt'", "oft"]),
    "a grid without -m": (["method=lora,oft"], ["method=lora,oft", "--multirun"]),
    "negative steps": (["hparams.max_steps=-1"], ["hparams.max_steps must be at least 1", "-1"]),
    "a bad value in a grid": (["-m", "hparams.max_steps=1,-1"], ["hparams.max_steps must be at least 1"]),
    "a rate of zero": (["hparams.lr=0"], ["hparams.lr must be above 0"]),
    "an unknown choice": (["hparams.scheduler=cosin"], ["hparams.scheduler must be one of", "Did you mean cosine"]),
    "no model id": (["model=hf"], ["peftsweep: error - model.id must be given"]),
    "a missing file": (["task.train_files=no.jsonl", "task.test_files=no.jsonl"], ["existing file", "'no.jsonl'"]),
    "half the files": (["task.test_files=."], ["task.valid_files and task.test_files need task.train_files"]),
    "bad syntax": (["method=[lora"], ["method=[lora"]),
    "a missing --config-dir": (["--config-dir", "nowhere"], ["--config-dir must be an existing folder"]),
    "full and quantised": (["method=full", "model.dtype=int4"], ["full fine-tuning", "'int4'"]),
    "an unknown command": (["repot"], ["no command of this name", "'repot'"]),
    "resume of nothing": (["resume=nowhere"], ["resume must name the folder of a job", "'nowhere'"]),
    "resume with other settings": (["resume=nowhere", "seed=1"], ["a job is resumed with its own settings"]),
    "parts without a way to share": (["parallel.dp_shard_size=2"], ["shared out by parallel=fsdp alone"]),
    "copies without a way": (["parallel.dp_replicate_size=2"], ["copies of a model need a way to be parallel"]),
    "one device": (["parallel=fsdp", "parallel.dp_shard_size=1"], ["needs two devices or more"]),
    "int8 in parts": (["parallel=fsdp", "model.dtype=int8"], ["more beside an int8 weight than can be shared out"]),
    "nothing to offload": (["parallel=ddp", "parallel.offload=true"], ["only the parts of a model wait on the host"]),
    "an interpolation to nowhere": (["hparams.lr=${nowhere.lr}"], ["nowhere"]),
}


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_wrong_configuration_is_told_before_anything_is_made(run, mistake):
    arguments, fragments = CONFIG_MISTAKES[mistake]
    told = run(arguments)
    assert told.code == 2
    for fragment in fragments:
        assert fragment in told.text
    assert "Traceback" not in told.text
    assert list(Path().iterdir()) == []


def test_two_bad_keys_are_told_at_once(run):
    told = run(["hparams.lrr=1", "sede=1", "method=nope", "hparams.max_steps=0"])
    assert "4 problems" in told.text
    for fragment in ("hparams.lrr", "'sede'", "'nope'", "hparams.max_steps must be at least 1"):
        assert fragment in told.text


def test_show_only_commands_explain_a_bad_setting_too(run):
    told = run(["--cfg", "job", "--resolve", "model=hf", "hparams.lr=${nowhere}"])
    assert told.code == 2
    assert "nowhere" in told.text


def test_a_configuration_mistake_is_told_without_torch():
    code = "import sys; from peftsweep.__main__ import main; code = main(['method=lroa']); print(code, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, *modules = done.stdout.split()
    assert answer == "2"
    assert HEAVY.isdisjoint(modules)


def add_yaml(path: str, text: str) -> list[str]:
    """The flag for a configuration folder of the user's own, with one file in it."""
    file = Path("conf-of-mine", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return ["--config-dir", "conf-of-mine"]


def test_a_task_of_another_modality_is_told(run):
    told = run(["task=image-gen", "model=pocket-llama"])
    assert told.code == 2
    assert "needs a model of modality image, got 'pocket-llama, text'" in told.text


EVIL = {
    "a callback": "hydra: {callbacks: {x: {_target_: os.system, command: touch pwned}}}",
    "a callback through our imports": (
        "hydra: {callbacks: {x: {_target_: peftsweep.__main__.os.system, command: touch pwned}}}"
    ),
    "a launcher": "hydra: {launcher: {_target_: subprocess.Popen}}",
    "a log handler": "hydra: {job_logging: {handlers: {x: {class: logging.os.system, command: touch pwned}}}}",
    "a log factory": "hydra: {job_logging: {formatters: {x: {(): os.system, command: touch pwned}}}}",
    "a log stream": "hydra: {job_logging: {handlers: {terminal: {stream: ext://antigravity.x}}}}",
    "an interpolated handler": (
        "hydra: {callbacks: {x: {a: {class: os.system}}}, job_logging: {handlers: {x: '${hydra.callbacks.x.a}'}}}"
    ),
    "an environment variable": "hydra: {job: {env_set: {LD_PRELOAD: evil.so}}}",
    "remote code": "model: {trust_remote_code: true}",
    "a scorer": "task: {scorer: 'evil:score'}",
    "a preset sweep": "hydra: {sweeper: {params: {model.trust_remote_code: 'true'}}}",
    "a preset sweep over variables": "hydra: {sweeper: {params: {+hydra.job.env_set.LD_PRELOAD: evil.so}}}",
}


@pytest.mark.parametrize("way", EVIL)
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["job", "grid"])
def test_a_yaml_from_a_stranger_can_not_run_code(run, way, mode):
    own = add_yaml("experiment/evil.yaml", f"# @package _global_\n{EVIL[way]}\n")
    told = run([*own, *mode, "experiment=evil", "task=sft"])
    assert told.code == 2
    assert "run code" in told.text or "logging configuration can" in told.text or "taken from elsewhere" in told.text
    assert {path.name for path in Path().iterdir()} == {"conf-of-mine"}


def test_the_user_may_name_a_scorer_on_the_command_line(run, job, monkeypatch):
    Path("mine.py").write_text("def score(prompt, target, generated):\n    return 0.25\n")
    monkeypatch.syspath_prepend(Path.cwd())
    told = run([*job, "task=sft", "task.scorer=mine:score"])
    assert told.code == 0, told.text
    assert json.loads(Path("job/result.json").read_text())["metrics"]["test/score"] == 0.25


def test_a_methods_own_yaml_runs_from_a_folder_of_the_users(run, job):
    own = add_yaml("method/mine.yaml", "defaults: [lora, _self_]\nname: mine\ncapacity: 2\n")
    told = run([*own, *job, "method=mine"])
    assert told.code == 0, told.text
    assert json.loads(Path("job/adapter/adapter_config.json").read_text())["r"] == 2


def fails(told, code, *fragments):
    assert told.code == code, told.text
    for fragment in fragments:
        assert fragment in told.text
    assert "Traceback" not in told.text
    assert_nothing_looks_complete()


def test_a_missing_column_is_told_with_those_that_are_there(run, job):
    write_rows(Path("train.jsonl"), [{"frage": "1 + 1", "antwort": "2"}] * 9)
    fails(run(job), 2, "must have one of the columns query", "frage", "task.prompt_column=")
    assert status_in() is None


def test_a_named_column_that_is_missing_is_told(run, job):
    fails(run([*job, "task.prompt_column=frage"]), 2, "must have column 'frage'")


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl"])
def test_an_empty_file_is_told(run, job, file):
    Path(file).write_text("")
    fails(run(job), 2, "this one is empty", file)


def test_a_file_that_is_no_json_is_told(run, job):
    Path("train.jsonl").write_text("{broken")
    fails(run(job), 2, "the data must be readable")


def test_test_rows_without_a_final_number_are_told(run, job):
    write_rows(Path("test.jsonl"), [{"query": "Why?", "response": "Because."}])
    fails(run(job), 2, "test rows must hold a final answer", "task=sft")


def test_a_missing_model_folder_is_told(run, job):
    fails(run([*job, "model.id=./nowhere"]), 2, "model.id must be a hub id or an existing folder", "./nowhere")


def test_a_folder_without_a_model_is_told(run, job):
    Path("empty").mkdir()
    fails(run([*job, "model.id=./empty"]), 2, "must hold a config.json")


@pytest.mark.parametrize("damage", ["cut short", "no header", "a weight missing"])
def test_damaged_weights_are_told(run, job, tiny_model, damage):
    shutil.copytree(tiny_model, "damaged")
    weights = Path("damaged/model.safetensors")
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no header":
        weights.write_bytes(b"\xff" * 5000)
    else:
        drop_a_weight(weights)
    fails(run([*job, "model.id=./damaged"]), 2, "weight")


def drop_a_weight(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def test_a_capacity_above_the_layers_size_is_told(run, job):
    fails(run([*job, "method.capacity=100000"]), 2, "the rank of lora must be at most 32", "100000")


@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["job", "grid"])
def test_an_output_folder_that_can_not_be_made_is_told(run, job, mode):
    Path("occupied").write_text("a file")
    told = run([*mode, *job, "hydra.run.dir=occupied/job", "hydra.sweep.dir=occupied/job"])
    fails(told, 1, "the output folder must be writable", "occupied")


def test_the_folder_of_a_finished_job_is_not_overwritten(run, job):
    assert run(job).code == 0
    before = Path("job/result.json").read_bytes()
    told = run(job)
    assert told.code == 1
    assert "must not hold a finished job already" in told.text
    assert Path("job/result.json").read_bytes() == before


def test_a_finished_job_has_nothing_to_resume(run, job):
    assert run(job).code == 0
    told = run(["resume=job"])
    assert told.code == 2
    assert "a finished job has nothing to resume" in told.text


def test_a_resume_without_a_checkpoint_leaves_the_result_in_place(run, job):
    assert run([*job, "method.capacity=100000"]).code == 2
    told = run(["resume=job"])
    assert told.code == 2
    assert "must hold a checkpoint" in told.text
    assert status_in() == "failed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("file", ["predictions.jsonl", "result.json.partial", "adapter"])
def test_a_full_disk_is_told(run, job, file):
    """The file of that name is a link to a device that is always full."""
    Path("job").mkdir()
    name = "adapter.partial/adapter_config.json" if file == "adapter" else file
    Path("job", name).parent.mkdir(exist_ok=True)
    Path("job", name).symlink_to("/dev/full")
    told = run(job)
    assert told.code == 1
    assert "the disk must have room" in told.text or "No space left on device" in told.text
    assert "Traceback" not in told.text
    assert status_in() in ("failed", None)
    assert not Path("job/result.json.partial").exists()
    if file == "adapter":  # no reason not to score it
        assert "test/accuracy" in json.loads(Path("job/result.json").read_text())["metrics"]
        assert not Path("job/adapter").exists()


def test_a_tracking_server_that_is_down_costs_no_result(run, job, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    told = run([*job, "tracking=mlflow", "tracking.system_metrics=false", f"tracking.uri=http://127.0.0.1:{port}"])
    assert told.code == 0, told.text
    assert "python -m peftsweep import" in told.text
    assert status_in() == "ok"


def test_a_loss_that_is_not_finite_ends_the_job_with_its_step(run, job):
    unclipped = [
        "method=full",
        "hparams.lr=1e36",
        "hparams.max_grad_norm=0",
        "hparams.warmup_fraction=0",
        "hparams.max_steps=9",
    ]
    fails(run([*job, *unclipped]), 1, "the training loss must stay finite; at step")
    result = json.loads(Path("job/result.json").read_text())
    assert result["status"] == "failed"
    assert "at step" in result["cause"]


def test_help_and_commands_are_listed(run):
    told = run(["--help"])
    assert told.code in (0, None)
    for fragment in ("method: ", "lily", "max_steps", "resume=", "--config-dir"):
        assert fragment in told.text


def test_a_job_says_first_what_it_will_do(run, job, tiny_model):
    told = run([*job, "method=lora", "hparams.lr=2e-3", "seed=4"])
    asked = f"lora on {tiny_model.name}, task metamath: learning rate 0.002, capacity 32, 2 steps of 2 rows, seed 4."
    asked += " Results go to job."
    assert asked in told.text
    assert told.text.index(asked) < told.text.index("Loaded")
    assert "Something else" not in told.text
    assert "learning rate" not in told.out  # that is the result's


def test_a_bare_command_says_what_it_does_how_long_and_what_else_there_is(run, monkeypatch):
    results = iter([JobResult(Status.OK, "lora", "pocket-llama", "metamath", seed=0)])
    monkeypatch.setattr("peftsweep.job.run.run_job", lambda *_, **__: next(results))
    told = run([])
    assert told.code == 0
    for fragment in ("lora on pocket-llama, task metamath: learning rate", "about a minute", "method=oft", "--help"):
        assert fragment in told.text
    assert next(results, None) is None  # it then does it


def test_a_job_shows_no_deprecation_of_other_packages(run, job):
    told = run(job)
    assert "Warning" not in told.text
    assert "deprecated" not in told.text + Path("job/job.log").read_text()


def test_the_version_is_ours_and_tells_those_of_what_it_stands_on(run):
    told = run(["--version"])
    assert told.code == 0
    assert told.text.startswith(f"peftsweep {__version__} ")
    for package in ("torch", "peft", "transformers", "optuna", "mlflow"):
        assert f" {package} {version(package)}" in told.text


def test_the_version_is_told_without_importing_anything():
    code = "import sys; from peftsweep.__main__ import main; main(['--version']);"
    code += f"sys.exit(bool({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_installed_command_is_the_same_program():
    from importlib.metadata import entry_points

    assert [entry.value for entry in entry_points(group="console_scripts", name="peftsweep")] == [
        "peftsweep.__main__:main"
    ]


def test_a_reader_that_leaves_early_is_no_error():
    """`peftsweep methods --json | head -0`: the pipe closes before anything is read."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "peftsweep", "--cfg", "job"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
