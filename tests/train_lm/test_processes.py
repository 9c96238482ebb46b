"""Tests that one process, several processes, and worker processes give the same run."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from runs import read_metrics

from higgs_audio.errors import RecipeError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.batches import CollatedWindows


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


DIE_AT_STEP = """
import os, sys
from higgs_audio.cli import main
from higgs_audio.train_lm import lm
steps, apply_step = [], lm.apply_step
def apply_or_kill(*args):
    steps.append(1)
    if len(steps) == 5:
        os._exit(9)
    return apply_step(*args)
lm.apply_step = apply_or_kill
main()
"""


def run_processes(recipe, count, tmp_path, kill=False):
    """Runs a recipe with torchrun and `count` gloo processes; `kill` kills them in the fifth step."""
    file, script = tmp_path / "recipe.yaml", tmp_path / "kill.py"
    lm.save_recipe(recipe, file)
    script.write_text(DIE_AT_STEP)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += [f"--master-port={free_port()}", *([str(script)] if kill else ["-m", "higgs_audio"])]
    done = subprocess.run(
        [*command, "train", "lm", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == kill, done.stderr[-3000:]


def assert_same_losses(one, other, tolerance):
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=tolerance, abs=tolerance)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_one_process_resumes_their_state(recipe, tmp_path):
    """FSDP2 over gloo. The third run has two processes, which are killed in the fifth step; one process resumes at step
    3."""
    one, two, mixed = (tmp_path / name for name in ("one", "two", "mixed"))
    lm.train_language_model(dataclasses.replace(recipe, output=str(one)))
    run_processes(dataclasses.replace(recipe, output=str(two)), 2, tmp_path)
    assert_same_losses(read_metrics(one), read_metrics(two), 1e-4)
    weights = [HiggsAudioForConditionalGeneration.from_pretrained(run / "model").state_dict() for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
    recipe = dataclasses.replace(recipe, output=str(mixed))
    run_processes(recipe, 2, tmp_path, kill=True)
    assert [line["step"] for line in read_metrics(mixed)][-1] == 4
    lm.train_language_model(recipe)  # from step 3 on
    assert_same_losses(read_metrics(one), read_metrics(mixed), 1e-4)


def test_a_run_with_worker_processes_is_the_same_run_and_a_dead_worker_is_a_recipe_error(recipe, tmp_path):
    """A worker can only die at a known step if it kills itself there, so that its method is replaced."""
    with_worker = dataclasses.replace(recipe, output=str(tmp_path / "worker"), num_workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CollatedWindows, "__getitem__", lambda self, window: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(RecipeError, match=r"killed .*DataLoader worker.*num_workers=1"):
            lm.train_language_model(with_worker)
    path, without = lm.train_language_model(with_worker), lm.train_language_model(recipe)
    assert (path / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()
