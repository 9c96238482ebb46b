"""Tests of the published repository before and after it was rewritten, in a local hub."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import Hub, serve

from higgs_audio import HiggsAudioForConditionalGeneration
from higgs_audio.convert import convert

NAME = "bosonai/higgs-audio-v2-generation-3B-base"
OLD, NEW = "1" * 40, "2" * 40  # commits
SHARDS = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}


@pytest.fixture(scope="module")
def commits(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """The repository before April 2026, in shards, and after it, with a single file beside the old shards."""
    folder = tmp_path_factory.mktemp("hub")
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model.save_pretrained(folder / "model")
    shards = {"old": convert(folder / "model", folder / "old", "boson")}
    split(shards["old"])
    new = convert(folder / "model", folder / "new", "transformers")
    for file in shards["old"].glob("model*"):
        (new / file.name).write_bytes(file.read_bytes())
    return {OLD: folder / "old", NEW: new}


def split(folder: Path) -> None:
    """Splits the single weight file of a folder into three with an index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def hub(commits) -> Iterator[Hub]:
    with serve({NAME: commits}) as hub:
        yield hub


# Each program takes several checkpoints, because a process takes seconds to start: a name, a revision and a value of
# `local_files_only`. It prints the name and the sum of the weights, or "error" and the message.
LOAD = """
import json, sys
from higgs_audio import HiggsAudioForConditionalGeneration
from higgs_audio.errors import CheckpointError
for name, revision, here in json.loads(sys.argv[1]):
    try:
        model = HiggsAudioForConditionalGeneration.from_pretrained(name, revision=revision, local_files_only=here)
        print(json.dumps([model.name_or_path, sum(float(w.double().sum()) for w in model.parameters())]), flush=True)
    except CheckpointError as error:
        print(json.dumps(["error", str(error)]), flush=True)
"""


DOWNLOAD = """
import json, sys
from higgs_audio.checkpoint import open_checkpoint
from higgs_audio.checkpoint.weights import open_weights
from higgs_audio.errors import CheckpointError
for name, revision, here in json.loads(sys.argv[1]):
    try:
        weights = open_weights(open_checkpoint(name, revision, local_files_only=here))
        print(json.dumps([name, sum(float(w[...].double().sum()) for w in weights.values())]), flush=True)
    except CheckpointError as error:
        print(json.dumps(["error", str(error)]), flush=True)
"""


def load(hub: Hub, cache: Path, *checkpoints: tuple[str, str | None, bool], program: str = LOAD) -> list[list]:
    """Runs `program` with the checkpoints; returns the lines that it prints."""
    return hub.run(cache, program, json.dumps(checkpoints))


@pytest.fixture(scope="module")
def total(tiny_checkpoint) -> float:
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        return sum(float(weight.double().sum()) for weight in model.parameters())


def test_the_new_revision_downloads_its_single_file_and_an_old_one_its_shards(hub, total, tmp_path):
    online = ((NAME, None, False), (NAME, OLD, False), (NAME, "v9", False), ("someone/else", None, False))
    nothing, new, old, unknown, elsewhere, *again = load(
        hub, tmp_path, (NAME, None, True), *online, (NAME, None, True), (NAME, OLD, True)
    )
    assert [new, old, *again] == [[NAME, pytest.approx(total)]] * 4
    assert nothing[0] == "error"
    assert hub.weights_of(NEW) == {"model.safetensors"}
    assert hub.weights_of(OLD) == SHARDS
    assert "has no revision 'v9'" in unknown[1]
    assert "neither a local folder nor a repository" in elsewhere[1]


def test_the_repository_loads_by_name_before_it_was_rewritten(hub, total, tmp_path):
    del hub.repositories[NAME][NEW]
    assert load(hub, tmp_path, (NAME, None, False)) == [[NAME, pytest.approx(total)]]
    assert hub.weights_of(OLD) == SHARDS


def test_an_interrupted_download_is_an_error_offline_and_completed_online(hub, total, tmp_path):
    hub.stalls_after = 10_000
    command = [sys.executable, "-W", "ignore", "-c", DOWNLOAD, json.dumps([(NAME, None, False)])]
    with subprocess.Popen(command, env=hub.environment(tmp_path), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not hub.weights_of(NEW) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.kill()
    assert hub.weights_of(NEW)
    hub.stalls_after = None
    failed, loaded = load(hub, tmp_path, (NAME, None, True), (NAME, None, False), program=DOWNLOAD)
    assert failed[0] == "error"
    assert loaded == [NAME, pytest.approx(total)]
