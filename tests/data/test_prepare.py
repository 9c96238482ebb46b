"""Tests of encoding clips for training: dropped clips, several workers, interrupted and repeated runs."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpus import RATE, TEXTS, make_tones, write_corpus
from full_disk import file_size_limit
from killing import hidden_names, run_until_rename
from runs import contents, manifest_line, prepare_recipe

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data import prepare
from higgs_audio.data.manifest import read_manifests
from higgs_audio.data.shards import read_encoded_clips
from higgs_audio.errors import RecipeError
from higgs_audio.text.phonemes import phonemize
from higgs_audio.training.recipe import load_recipe

REASONS = {
    "kept": 1,
    "bad line": 1,
    "duplicate": 1,
    "too short": 1,
    "too long": 1,
    "missing file": 1,
    "undecodable": 2,
    "not finite": 1,
    "empty text": 1,
    "unspeakable text": 2,
    "pace": 2,
}


def codes_of(codec, clip):
    waveform = torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0])
    return codec.encode(waveform[None, None]).audio_codes[0].numpy()


def test_clips_without_alignment_have_codes_and_the_fields_of_the_manifest(encoded, annotated_corpus, tiny_checkpoint):
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    clips = read_encoded_clips(encoded)
    for clip, source in zip(clips, read_manifests(annotated_corpus), strict=True):
        assert np.array_equal(clip.codes, codes_of(codec, source))
        assert (clip.id, clip.text, clip.phonemes, len(clip.phones)) == (source.id, source.text, source.text, 0)
        assert (clip.scene, clip.reference) == (source.scene, source.reference)
    assert [bool(clip.scene) for clip in clips] == [False, True, False, False, False, False]


def test_aligned_clips_have_codes_phonemes_and_the_phone_of_each_frame(corpus, tiny_teacher, tiny_checkpoint, tmp_path):
    """The alignments of a teacher with random weights have low scores."""
    recipe = prepare_recipe(corpus, tiny_teacher, tiny_checkpoint, tmp_path, min_score=-100.0)
    assert prepare.prepare(recipe) == {"kept": len(TEXTS)}
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    clips, sources = read_encoded_clips(tmp_path), read_manifests(corpus)
    assert [clip.id for clip in clips] == [source.id for source in sources]
    for clip, source in zip(clips, sources, strict=True):
        assert np.array_equal(clip.codes, codes_of(codec, source))
        assert clip.phones.shape == (clip.num_frames,)
        assert (clip.text, clip.phonemes, clip.speaker) == (source.text, phonemize(source.text), source.speaker)


def write_all_kinds(folder):
    """Writes a manifest with one valid clip, and one clip for each reason to drop it."""
    text = TEXTS[0]
    tones, _ = make_tones(text)
    waveforms = {
        "good": tones,
        "short": tones[:2400],
        "long": np.tile(tones, 8),
        "nan": tones.copy(),
        "slow": np.tile(tones, 3),
        "fast": tones[:RATE],
    }
    waveforms["nan"][100] = math.nan
    for name, samples in waveforms.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    # Copied, because a float WAV contains the time at which it was written.
    (folder / "twice.wav").write_bytes((folder / "good.wav").read_bytes())
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "torn.flac").write_bytes(b"fLaC" + bytes(40))
    texts = {"slow": "No.", "fast": text * 4, "empty": " \n", "signs": "?!", "special": "Well.<|eot_id|>"}
    audio = {"empty": "good.wav", "signs": "good.wav", "special": "good.wav", "torn": "torn.flac"}
    names = ["good", "twice", "short", "long", "missing", "broken", "torn", "nan", *texts]
    lines = [manifest_line(id=n, audio=audio.get(n, f"{n}.wav"), text=texts.get(n, text), seconds=1.7) for n in names]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno JSON\n")


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])
def test_dropped_clips_are_counted_by_reason_and_listed_by_id(recipe, tiny_teacher, tmp_path, aligned):
    """Lengths are those of the files: every line of the manifest claims 1.7 seconds."""
    write_all_kinds(tmp_path)
    own = {"data": str(tmp_path), "output": str(tmp_path / "out"), "teacher": str(tiny_teacher) if aligned else ""}
    counts = prepare.prepare(dataclasses.replace(recipe, **own, min_score=-100.0))
    assert counts == REASONS
    dropped = [json.loads(row) for row in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped} == {
        "manifest.jsonl:14": "bad line",
        "twice": "duplicate",
        "short": "too short",
        "long": "too long",
        "missing": "missing file",
        "broken": "undecodable",
        "torn": "undecodable",
        "nan": "not finite",
        "empty": "empty text",
        "signs": "unspeakable text",
        "special": "unspeakable text",
        "slow": "pace",
        "fast": "pace",
    }
    details = {row["id"]: row["detail"] for row in dropped}
    assert "0.10 s, less than 0.6" in details["short"] and "<|eot_id|>" in details["special"]
    assert ("phones" if aligned else "characters") in details["slow"]
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["counts"] == REASONS


def test_more_phones_than_frames_and_low_scores_are_dropped(recipe, tiny_teacher, tmp_path):
    write_corpus(tmp_path, [("good", {"text": TEXTS[0]}), ("hurried", {"text": TEXTS[1] * 4})])
    tones, _ = make_tones(TEXTS[1] * 4)
    soundfile.write(tmp_path / "hurried.wav", tones[:RATE], RATE)
    own = {"data": str(tmp_path), "teacher": str(tiny_teacher), "max_phones_per_second": 99.0}
    aligned = dataclasses.replace(recipe, **own, output=str(tmp_path / "out"), min_score=-100.0)
    assert prepare.prepare(aligned) == {"kept": 1, "alignment": 1}
    strict = dataclasses.replace(aligned, output=str(tmp_path / "strict"), min_score=-0.01)
    assert prepare.prepare(strict) == {"kept": 0, "alignment": 1, "score": 1}
    with pytest.raises(RecipeError, match="no prepared clips"):
        read_encoded_clips(tmp_path / "strict")


def test_a_repeated_run_writes_only_missing_and_damaged_parts(recipe, encoded, copy, capsys):
    for name in ("part-0001.jsonl", "prepared.json"):  # as after a kill between the two files of a part
        (copy / name).unlink()
    (copy / "part-0001.safetensors").write_bytes(b"half")
    (copy / "part-0001.safetensors.part").write_bytes(b"half")  # as an earlier version left it
    file = copy / "part-0002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    complete = (copy / "part-0000.safetensors").stat()
    assert prepare.prepare(dataclasses.replace(recipe, output=str(copy))) == {"kept": 6}
    assert re.findall(r"worker 0: (part-\d+)", capsys.readouterr().err) == ["part-0001", "part-0002"]
    assert (copy / "part-0000.safetensors").stat().st_ino == complete.st_ino
    assert contents(copy) == contents(encoded)


def test_an_output_folder_with_other_clips_or_codes_is_an_error_and_is_not_changed(
    recipe, encoded, copy, tiny_checkpoint, tmp_path
):
    write_corpus(tmp_path, [(f"clip-{n}", {"text": text}) for n, text in enumerate(TEXTS[1:])])
    other_clips = dataclasses.replace(recipe, data=str(tmp_path), output=str(copy), clips_per_part=3)
    with pytest.raises(RecipeError, match="has other clips, because the manifests have changed"):
        prepare.prepare(other_clips)
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    with torch.no_grad():
        codec.fc.weight.mul_(1.1)
    codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(RecipeError, match="codes of another audio tokenizer: codec is"):
        prepare.prepare(dataclasses.replace(recipe, tokenizer=str(tmp_path / "codec"), output=str(copy)))
    assert contents(copy) == contents(encoded)


def test_workers_started_separately_share_the_parts_and_the_last_writes_the_report(recipe, encoded, tmp_path):
    separate = dataclasses.replace(recipe, output=str(tmp_path), num_workers=2)
    assert prepare.prepare(dataclasses.replace(separate, worker=1)) == {"kept": 2}
    assert sorted(contents(tmp_path)) == ["part-0001.jsonl", "part-0001.safetensors"]
    assert prepare.prepare(dataclasses.replace(separate, worker=0)) == {"kept": 6}
    assert contents(tmp_path) == contents(encoded)


WORKERS = """
import os, signal, sys
from higgs_audio.data import prepare
from higgs_audio.training.recipe import load_recipe

make = prepare.prepare_part

def make_or_die(clips, path, *rest):
    if path.name == "part-0001" and os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    return make(clips, path, *rest)

prepare.prepare_part = make_or_die
if __name__ == "__main__":
    print(prepare.prepare(load_recipe(sys.argv[1], prepare.PrepareRecipe)))
"""


@pytest.mark.slow
def test_the_next_run_writes_the_parts_of_a_killed_worker(recipe, encoded, tmp_path):
    """Worker 1 of 2 is killed in its only part; worker 0 completes its parts, and the next run writes the rest."""
    (tmp_path / "main.py").write_text(WORKERS)
    output = tmp_path / "out"
    fields = dataclasses.asdict(dataclasses.replace(recipe, output=str(output), num_workers=2))
    (tmp_path / "recipe.yaml").write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items()))
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "recipe.yaml")]
    killed = subprocess.run(command, env={**os.environ, "DIE": "1"}, capture_output=True, text=True)
    assert killed.returncode == 1
    assert "worker 1 ended with code -9" in killed.stderr and "run the command again for the rest" in killed.stderr
    assert sorted(contents(output)) == [f"part-000{n}.{kind}" for n in (0, 2) for kind in ("jsonl", "safetensors")]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout == "{'kept': 6}\n"
    assert contents(output) == contents(encoded)


REPORT = """
from pathlib import Path
from higgs_audio.data.prepare import report
report(Path(sys.argv[1]), [Path(sys.argv[1], f"part-000{number}") for number in range(3)], [])
"""


@pytest.mark.parametrize("missing", [("dropped.jsonl", "prepared.json"), ()], ids=["new report", "existing report"])
def test_the_next_run_writes_the_report_of_a_killed_one_and_removes_its_temporary_file(recipe, encoded, copy, missing):
    for name in missing:
        (copy / name).unlink()
    run_until_rename(REPORT, copy)
    (leftover,) = hidden_names(copy)
    assert leftover.startswith(".dropped.jsonl.")
    assert contents(copy).keys() == contents(encoded).keys() - {*missing} | {leftover}
    assert prepare.prepare(dataclasses.replace(recipe, output=str(copy))) == {"kept": 6}
    assert contents(copy) == contents(encoded)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").rglob("prepare*.yaml")), ids=str)
def test_every_prepare_recipe_of_the_repository_is_valid(path):
    prepare.check_recipe(load_recipe(path, prepare.PrepareRecipe))


@pytest.mark.parametrize(
    "fields",
    [
        *({"min_seconds": 0.0}, {"max_seconds": 0.5}, {"min_phones_per_second": 30.0}, {"clips_per_part": 0}),
        *({"num_workers": 0}, {"worker": 1}, {"worker": -2}),
    ],
    ids=str,
)
def test_an_impossible_value_of_a_recipe_is_an_error(recipe, tmp_path, fields):
    with pytest.raises(RecipeError, match=next(iter(fields)).split("_")[-1]):
        prepare.prepare(dataclasses.replace(recipe, output=str(tmp_path / "out"), **fields))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_an_error_and_the_parts_before_are_complete(recipe, tmp_path):
    """Each part is larger than the one before."""
    (tmp_path / "corpus").mkdir()
    texts = enumerate(sorted(TEXTS, key=len))
    corpus = write_corpus(tmp_path / "corpus", [(f"clip-{number}", {"text": text}) for number, text in texts])
    whole, broken = (dataclasses.replace(recipe, data=str(corpus), output=str(tmp_path / name)) for name in "ab")
    prepare.prepare(whole)
    sizes = {name: len(content) for name, content in contents(tmp_path / "a").items()}
    assert sizes["part-0000.safetensors"] < sizes["part-0001.safetensors"]
    with (
        file_size_limit(sizes["part-0000.safetensors"]),
        pytest.raises(RecipeError, match=r"part-0001 cannot be written .*File too large.* free disk space"),
    ):
        prepare.prepare(broken)
    assert sorted(contents(tmp_path / "b")) == ["part-0000.jsonl", "part-0000.safetensors"]
    prepare.prepare(broken)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
