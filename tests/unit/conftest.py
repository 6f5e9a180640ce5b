"""Real jobs of two steps on the embedded model, one for each method, shared by the tests."""

from functools import cache

import pytest

QUICK = (
    "hparams.max_steps=2",
    "hparams.lr=3e-3",
    "hparams.batch_size=2",
    "hparams.eval_batch_size=4",
    "task.train_rows=8",
    "task.valid_rows=4",
    "task.test_rows=4",
    "task.max_new_tokens=4",
    "task.general_rows=0",
    "task.base_score=false",
    "tracking=none",
)


def run_job_in(folder, overrides):
    # Late: most unit tests need no torch.
    from peftsweep.config.check import build_config
    from peftsweep.config.compose import compose_config
    from peftsweep.job.run import run_job

    run_job(build_config(compose_config(overrides)), folder, keep_base=True)
    return folder


@pytest.fixture(scope="session")
def quick():
    """Settings of such a job."""
    return QUICK


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Method name, further settings -> folder of a finished job."""
    root = tmp_path_factory.mktemp("jobs")

    @cache
    def run(method, *settings):
        folder = root / "-".join([method, *settings]).replace("/", "_")
        return run_job_in(folder, [f"method={method}", f"cache={root}/cache", *QUICK, *settings])

    return run


SMALL_PICTURES = (
    "task=image-gen",
    "hparams.max_steps=2",
    "hparams.lr=3e-3",
    "hparams.batch_size=2",
    "task.resolution=32",
    "task.max_prompt_tokens=8",
    "task.text_encoder_layers=[1,2,3]",
    "task.inference_steps=1",
    "task.guidance=1.0",
    "task.valid_photos=2",
    "task.test_photos=2",
    "task.test_seeds=1",
    "task.drift_prompts=[]",
    "task.sample_prompts=[]",
    "task.base_score=false",
    "tracking=none",
    "device=cpu",
)


@pytest.fixture(scope="session")
def finished_image_job(tmp_path_factory):
    """Method name -> folder of a finished job on the embedded pipeline, at four tokens a picture."""
    root = tmp_path_factory.mktemp("image-jobs")

    @cache
    def run(method):
        return run_job_in(root / method, [f"method={method}", f"cache={root}/cache", *SMALL_PICTURES])

    return run
