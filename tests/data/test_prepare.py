"""The data of training: manifests, preparing with several workers, parts on disk, and imports of other formats."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from corpus import RATE, TEXTS, hum, write_corpus
from safetensors.numpy import load_file, save_file

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data import prepare, shards
from higgs_audio.data.clips import Clip
from higgs_audio.data.importers import from_huggingface, from_lhotse
from higgs_audio.data.manifest import duplicates, read_manifests, scan
from higgs_audio.data.shards import metadata_of, read_encoded_clips, stamp_of
from higgs_audio.errors import MissingExtraError, RecipeError
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.recipe import LanguageModelRecipe
from higgs_audio.training.recipe import load_recipe

NUM_CODEBOOKS = 8
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six clips; one tells its scene, and one which clip is to be heard before it."""
    more = {1: {"scene": "A large hall."}, 2: {"reference": "clip-0"}}
    entries = [(f"clip-{n}", {"text": text, **more.get(n, {})}) for n, text in enumerate(TEXTS)]
    return write_corpus(tmp_path_factory.mktemp("corpus"), entries)


@pytest.fixture(scope="module")
def recipe(corpus, tiny_checkpoint):
    """Codes alone, two clips in a part."""
    tokenizer = str(tiny_checkpoint / "codec")
    return prepare.PrepareRecipe(str(corpus), tokenizer, "", "", clips_per_part=2)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """What one process makes of the corpus."""
    output = tmp_path_factory.mktemp("whole")
    assert prepare.prepare(dataclasses.replace(recipe, output=str(output))) == {"kept": len(TEXTS)}
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy(whole, folder):
    for name, data in contents(whole).items():
        (folder / name).write_bytes(data)
    return folder


# Manifests


def line(**fields):
    return {"id": "a", "audio": "a.wav", "text": "A.", "speaker": "ava", "seconds": 1.0, **fields}


BAD_LINES = [
    ("{", "Expecting"),
    ("[1]", "a list where a clip's fields should be"),
    (json.dumps({"id": "a", "audio": "a.wav", "text": "A."}), "no 'speaker'"),
    (json.dumps(line(id="")), "'id' is empty"),
    (json.dumps(line(text=["A."])), "text="),
    (json.dumps(line(seconds="1")), "seconds='1' must be a number"),
    (json.dumps(line(seconds=float("nan"))), "seconds=nan"),
    (json.dumps(line(phones=[["a", 0]])), "phones="),
    (json.dumps(line(scene=3.5)), "scene=3.5 must be text"),
]


@pytest.mark.parametrize(("text", "problem"), BAD_LINES, ids=[problem for _, problem in BAD_LINES])
def test_a_line_that_names_no_clip_is_said_with_its_file_and_number(tmp_path, text, problem):
    (tmp_path / "manifest-1.jsonl").write_text(f"{json.dumps(line(id='b'))}\n\n{text}\n", encoding="utf-8")
    clips, bad = scan(tmp_path, "train")
    assert [clip.id for clip in clips] == ["b"]
    assert [one.where for one in bad] == ["manifest-1.jsonl:3"]
    with pytest.raises(RecipeError, match=r"manifest-1\.jsonl:3: .*" + problem.split("=")[0]):
        read_manifests(tmp_path)
    assert problem in bad[0].problem


def test_an_id_names_one_clip_of_a_split(tmp_path):
    lines = [line(), line(split="heldout"), line(text="B.")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    clips, bad = scan(tmp_path, "train")
    assert [clip.text for clip in clips] == ["A."]
    assert (bad[0].where, bad[0].problem) == ("manifest.jsonl:3", "another clip has the id 'a'")
    assert scan(tmp_path, "heldout")[1] == []


def test_a_manifest_in_latin_1_is_not_guessed_at(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(json.dumps(line(text="é"), ensure_ascii=False).encode("latin-1"))
    assert "utf-8" in scan(tmp_path, "train")[1][0].problem


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    """Texts from the web hold other separators; JSON need not escape them, and `splitlines` cut lines there."""
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line(text="One\u2028two."), ensure_ascii=False) + "\n")
    assert read_manifests(tmp_path)[0].text == "One\u2028two."


def test_a_length_that_is_not_told_is_that_of_the_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(12_000), RATE)
    told = {name: value for name, value in line(id=7).items() if name != "seconds"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(told))
    assert read_manifests(tmp_path) == [Clip("7", tmp_path / "a.wav", "A.", "ava", 0.5)]


def test_a_parquet_manifest_says_the_same_as_json_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    phones = [["a", 0.0, 0.5], ["b", 0.5, 1.0]]
    rows = [
        line(speaker=3, split="train", scene="A hall.", reference="b", phones=None),
        line(id="b", speaker=3, split=None, scene=None, reference=None),
        line(id="c", speaker=3, text=None),
        line(id=None, speaker=3),
    ]
    (tmp_path / "json").mkdir()
    (tmp_path / "parquet").mkdir()
    (tmp_path / "json" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "parquet" / "manifest.parquet")
    (clips, bad), (wanted, wanted_bad) = (scan(tmp_path / kind, "train") for kind in ("parquet", "json"))
    bare = [[dataclasses.replace(clip, audio=clip.audio.name) for clip in found] for found in (clips, wanted)]
    assert bare[0] == bare[1] and len(clips) == 3
    assert [b.problem for b in bad] == [b.problem for b in wanted_bad] and bad[0].where == "manifest.parquet:4"
    table = pyarrow.Table.from_pylist([line(phones=[{"phone": p, "start": a, "end": b} for p, a, b in phones])])
    parquet.write_table(table, tmp_path / "parquet" / "manifest.parquet")
    assert read_manifests(tmp_path / "parquet")[0].phones == tuple(map(tuple, phones))
    (tmp_path / "parquet" / "manifest.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RecipeError, match="cannot be read as Parquet"):
        read_manifests(tmp_path / "parquet")


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"'pyarrow' .* pip install 'higgs-audio\[train\]'"):
        read_manifests(tmp_path)


def test_a_duplicate_has_the_text_and_the_bytes_of_an_earlier_clip(tmp_path):
    for name, data in {"a": b"one", "b": b"one", "c": b"two", "d": b"one", "e": b"three"}.items():
        (tmp_path / name).write_bytes(data)
    texts = {"a": "A.", "b": "A.", "c": "A.", "d": "Another.", "e": "A.", "gone": "A."}
    clips = [Clip(name, tmp_path / name, text, "ava", 1.0) for name, text in texts.items()]
    assert duplicates([*clips, Clip("again", tmp_path / "d", "Another.", "joe", 1.0)]) == {"b", "again"}


# Preparing


def write_all_kinds(folder):
    """A manifest with a clip of every kind that is not kept, and one that is."""
    text = TEXTS[0]
    sound, _ = hum(text)
    recorded = {
        "good": sound,
        "short": sound[:2400],
        "long": np.tile(sound, 8),
        "spoilt": sound.copy(),
        "slow": np.tile(sound, 3),
        "fast": sound[:RATE],
    }
    recorded["spoilt"][100] = math.nan
    for name, samples in recorded.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    # A copy: a float WAV says in which second it was written.
    (folder / "twice.wav").write_bytes((folder / "good.wav").read_bytes())
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "torn.flac").write_bytes(b"fLaC" + bytes(40))
    texts = {"slow": "No.", "fast": text * 4, "empty": " \n", "signs": "?!", "special": "Well.<|eot_id|>"}
    audio = {"empty": "good.wav", "signs": "good.wav", "special": "good.wav", "torn": "torn.flac"}
    names = ["good", "twice", "short", "long", "missing", "broken", "torn", "spoilt", *texts]
    lines = [line(id=n, audio=audio.get(n, f"{n}.wav"), text=texts.get(n, text), seconds=1.7) for n in names]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno JSON\n")


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])
def test_what_is_dropped_is_counted_and_told_by_id_with_the_reason(recipe, tiny_teacher, tmp_path, aligned):
    """Lengths are those of the sounds: all manifests' lines say 1.7 seconds."""
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
        "spoilt": "not finite",
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
    sound, _ = hum(TEXTS[1] * 4)
    soundfile.write(tmp_path / "hurried.wav", sound[:RATE], RATE)
    own = {"data": str(tmp_path), "teacher": str(tiny_teacher), "max_phones_per_second": 99.0}
    made = dataclasses.replace(recipe, **own, output=str(tmp_path / "out"), min_score=-100.0)
    assert prepare.prepare(made) == {"kept": 1, "alignment": 1}
    strict = dataclasses.replace(made, output=str(tmp_path / "strict"), min_score=-0.01)
    assert prepare.prepare(strict) == {"kept": 0, "alignment": 1, "score": 1}
    with pytest.raises(RecipeError, match="no prepared clips"):
        read_encoded_clips(tmp_path / "strict")


def test_clips_that_are_not_aligned_have_codes_text_scene_and_reference_but_no_phones(whole, corpus, tiny_checkpoint):
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    for sample, clip in zip(read_encoded_clips(whole), read_manifests(corpus), strict=True):
        sound = torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0])
        assert np.array_equal(sample.codes, codec.encode(sound[None, None]).audio_codes[0].numpy())
        assert (sample.id, sample.text, sample.phonemes, len(sample.phones)) == (clip.id, clip.text, clip.text, 0)
        assert (sample.scene, sample.reference) == (clip.scene, clip.reference)
    assert [bool(s.scene) for s in read_encoded_clips(whole)] == [False, True, False, False, False, False]


def test_preparing_again_makes_only_the_parts_that_are_missing_or_damaged(recipe, whole, tmp_path, monkeypatch):
    copy(whole, tmp_path)
    for name in ("part-0001.jsonl", "prepared.json"):  # as after a kill between the two files of a part
        (tmp_path / name).unlink()
    (tmp_path / "part-0001.safetensors").write_bytes(b"half")
    file = tmp_path / "part-0002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    made, make = [], prepare.prepare_part
    monkeypatch.setattr(
        prepare, "prepare_part", lambda clips, path, *rest: made.append(path.name) or make(clips, path, *rest)
    )
    assert prepare.prepare(dataclasses.replace(recipe, output=str(tmp_path))) == {"kept": 6}
    assert made == ["part-0001", "part-0002"]
    assert contents(tmp_path) == contents(whole)


def test_an_output_folder_with_other_clips_or_codes_is_left_as_it_is(recipe, whole, tiny_checkpoint, tmp_path):
    write_corpus(tmp_path, [(f"clip-{n}", {"text": text}) for n, text in enumerate(TEXTS[1:])])
    other = dataclasses.replace(recipe, data=str(tmp_path), output=str(copy(whole, tmp_path_of(tmp_path))))
    with pytest.raises(RecipeError, match="has other clips: the manifests have changed"):
        prepare.prepare(dataclasses.replace(other, clips_per_part=3))
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    with torch.no_grad():
        codec.fc.weight.mul_(1.1)
    codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(RecipeError, match="codes of another audio tokenizer: codec is"):
        prepare.prepare(dataclasses.replace(recipe, tokenizer=str(tmp_path / "codec"), output=other.output))
    assert contents(tmp_path_of(tmp_path)) == contents(whole)


def tmp_path_of(folder):
    (folder / "out").mkdir(exist_ok=True)
    return folder / "out"


def test_workers_started_by_hand_share_the_parts_and_the_last_one_writes_the_report(recipe, whole, tmp_path):
    by_hand = dataclasses.replace(recipe, output=str(tmp_path), num_workers=2)
    assert prepare.prepare(dataclasses.replace(by_hand, worker=1)) == {"kept": 2}
    assert sorted(contents(tmp_path)) == ["part-0001.jsonl", "part-0001.safetensors"]
    assert prepare.prepare(dataclasses.replace(by_hand, worker=0)) == {"kept": 6}
    assert contents(tmp_path) == contents(whole)


WORKERS = """
import os, signal, sys
from higgs_audio.data import prepare
from higgs_audio.training.recipe import load_recipe

make = prepare.prepare_part

def make_or_die(clips, path, *rest):
    if path.name == "part-0001" and os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    return make(clips, path, *rest)

prepare.prepare_part = make_or_die
if __name__ == "__main__":
    print(prepare.prepare(load_recipe(sys.argv[1], prepare.PrepareRecipe)))
"""


@pytest.mark.slow
def test_a_killed_workers_parts_are_made_by_the_next_run(recipe, whole, tmp_path):
    """Worker 1 of 2 dies in its only part; the other one does all of its own, and a rerun the rest."""
    (tmp_path / "main.py").write_text(WORKERS)
    output = tmp_path / "out"
    fields = dataclasses.asdict(dataclasses.replace(recipe, output=str(output), num_workers=2))
    (tmp_path / "recipe.yaml").write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items()))
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "recipe.yaml")]
    killed = subprocess.run(command, env={**os.environ, "DIES": "1"}, capture_output=True, text=True)
    assert killed.returncode == 1
    assert "worker 1 ended with -9" in killed.stderr and "run it again for the rest" in killed.stderr
    assert sorted(contents(output)) == [f"part-000{n}.{kind}" for n in (0, 2) for kind in ("jsonl", "safetensors")]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout == "{'kept': 6}\n"
    assert contents(output) == contents(whole)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").rglob("prepare*.yaml")), ids=str)
def test_the_recipes_that_are_shipped_are_possible(path):
    prepare.check_recipe(load_recipe(path, prepare.PrepareRecipe))


@pytest.mark.parametrize(
    "fields",
    [
        *({"min_seconds": 0.0}, {"max_seconds": 0.5}, {"min_phones_per_second": 30.0}, {"clips_per_part": 0}),
        *({"num_workers": 0}, {"worker": 1}, {"worker": -2}),
    ],
    ids=str,
)
def test_impossible_values_of_a_recipe_are_refused(recipe, tmp_path, fields):
    with pytest.raises(RecipeError, match=next(iter(fields)).split("_")[-1]):
        prepare.prepare(dataclasses.replace(recipe, output=str(tmp_path / "out"), **fields))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_stops_preparing_with_the_parts_before_whole(recipe, whole, tmp_path, monkeypatch):
    written, full = [], OSError(28, "No space left on device")

    def save_until_full(arrays, path, metadata):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise full
        save_file(arrays, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_file", save_until_full)
        with pytest.raises(RecipeError, match=r"part-0001 cannot be written .* No space left .* make room"):
            prepare.prepare(dataclasses.replace(recipe, output=str(tmp_path)))
    assert sorted(contents(tmp_path)) == ["part-0000.jsonl", "part-0000.safetensors"]
    prepare.prepare(dataclasses.replace(recipe, output=str(tmp_path)))
    assert contents(tmp_path) == contents(whole)


# Parts on disk


def test_samples_are_views_of_mapped_files_and_no_file_stays_open(whole):
    """A part keeps no file descriptor: there may be more parts than a process may open files."""
    open_before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    samples = read_encoded_clips(whole)
    assert all(not sample.codes.flags.owndata and sample.codes.dtype == np.uint16 for sample in samples)
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == len(open_before)
    arrays = load_file(whole / "part-0001.safetensors")
    assert np.array_equal(np.concatenate([s.codes for s in samples[2:4]], axis=1), arrays["codes"])


def cut_file(folder):
    file = folder / "part-0001.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    return "part-0001 cannot be read"


def swap_files(folder):
    """Codes of one part under the index of another."""
    (folder / "part-0001.safetensors").write_bytes((folder / "part-0000.safetensors").read_bytes())
    return r"part-0001 has codes of the shape \[8, \d+\] and an index of \d+ frames"


def lose_file(folder):
    (folder / "part-0001.safetensors").unlink()
    return "part-0001 cannot be read"


def tear_index(folder):
    path = folder / "part-0001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    return "part-0001 cannot be read"


def other_type(folder):
    arrays = load_file(folder / "part-0001.safetensors")
    save_file({name: array.astype(np.int32) for name, array in arrays.items()}, folder / "part-0001.safetensors")
    return "part-0001 cannot be read: codes is I32"


def other_phones(folder):
    arrays = load_file(folder / "part-0001.safetensors")
    save_file({**arrays, "phones": np.zeros(3, np.uint16)}, folder / "part-0001.safetensors")
    return "part-0001 has 3 phones"


@pytest.mark.parametrize("damage", [cut_file, swap_files, lose_file, tear_index, other_type, other_phones])
def test_a_damaged_part_is_named(whole, tmp_path, damage):
    wanted = damage(copy(whole, tmp_path))
    (tmp_path / "part-0002.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match=rf"{wanted}.*; part-0002 .*prepare` again"):
        read_encoded_clips(tmp_path)


def test_the_stamp_is_of_what_makes_codes_and_not_of_what_decodes_them(tiny_checkpoint):
    stamps = []
    for part in (None, "acoustic_decoder", "fc2", "acoustic_encoder", "semantic_model", "quantizer", "fc"):
        codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
        with torch.no_grad():
            for weight in codec.get_submodule(part).parameters() if part else ():
                weight.add_(0.01)
        stamps.append(stamp_of(codec)["codec"])
    assert stamps[0] == stamps[1] == stamps[2]
    assert len(set(stamps)) == 5
    assert {n: v for n, v in stamp_of(codec).items() if n != "codec"} == {
        "num_codebooks": "8",
        "codebook_size": "1024",
        "frame_rate": "25",
        "sample_rate": "24000",
    }


def test_parts_of_different_audio_tokenizers_are_no_material(whole, tmp_path):
    copy(whole, tmp_path)
    file = tmp_path / "part-0001.safetensors"
    stamp = {**json.loads((whole / "prepared.json").read_text())["codec"], "codec": "another"}
    save_file(load_file(file), file, metadata_of(stamp))
    with pytest.raises(RecipeError, match="part-0001' has codes of another audio tokenizer: codec is another there"):
        read_encoded_clips(tmp_path)


def test_parts_that_were_written_before_there_were_stamps_are_read(whole, tmp_path):
    copy(whole, tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file(load_file(file), file)
    stamp = json.loads((whole / "prepared.json").read_text())["codec"]
    assert [s.id for s in read_encoded_clips(tmp_path, stamp)] == [s.id for s in read_encoded_clips(whole, stamp)]
    with pytest.raises(RecipeError, match="num_codebooks is 8 there and 4 here"):
        read_encoded_clips(tmp_path, {**stamp, "num_codebooks": "4"})


# Training from them


def lm_recipe(tiny_checkpoint, data, output):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LanguageModelRecipe(
        *(str(data), str(data), str(tiny_checkpoint), str(output)),
        text_config={**sizes, "num_key_value_heads": 1, "head_dim": 16},
        profiles={"ava": "Ava"},
        default_speaker="ava",
        num_steps=3,
        batch_positions=400,
        warmup=1,
        log_every=1,
        check_every=3,
    )


def test_a_language_model_is_trained_without_the_guide_where_nothing_was_aligned(whole, tiny_checkpoint, tmp_path):
    """The layers that the recipe names for the guide are not looked at; nano has more than this model."""
    lm.train_language_model(lm_recipe(tiny_checkpoint, whole, tmp_path))
    metrics = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"look", "phone", "phone_accuracy", "text_gain"}.isdisjoint(row) for row in metrics)
    assert {"codebook_0", "text", "norm"} <= set(metrics[0]) and "heldout_0" in metrics[-1]
    assert load_recipe(tmp_path / "recipe.yaml", LanguageModelRecipe).guide_weight == 0


def test_codes_of_another_audio_tokenizer_are_refused_before_training(recipe, whole, tiny_checkpoint, tmp_path):
    copy(whole, tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file(load_file(file), file, metadata_of({"codec": "another"}))
    with pytest.raises(RecipeError, match="codec is another there"):
        lm.train_language_model(lm_recipe(tiny_checkpoint, tmp_path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Imports


@dataclasses.dataclass
class AudioFeature:
    decode: bool = True


class Rows(list):
    """Behaves like a data set of Hugging Face: files are decoded unless the column is cast."""

    @property
    def features(self):
        return {"audio": AudioFeature()}

    def cast_column(self, name, feature):
        assert (name, feature) == ("audio", AudioFeature(decode=False))
        return list(self)


def sound_bytes(folder, num_samples=2400, rate=16_000):
    soundfile.write(folder / "x.wav", 0.1 * np.sin(np.arange(num_samples) / 5), rate)
    return (folder / "x.wav").read_bytes()


def test_a_hugging_face_data_set_becomes_a_folder_that_prepare_reads(tmp_path):
    data = sound_bytes(tmp_path)
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=torch.zeros(1, 800) + 0.1, sample_rate=8000))
    rows = Rows(
        {"audio": audio, "text": text, "speaker_id": speaker, "more": 1}
        for audio, text, speaker in [
            ({"bytes": data, "path": None}, "One.", 7),
            ({"bytes": None, "path": str(tmp_path / "x.wav")}, "Two.", "joe"),
            ({"array": np.zeros(400) + 0.1, "sampling_rate": 8000}, "Three.", 7),
            (decoder, "Four.", 7),
            ({"bytes": b"nothing", "path": None}, "Five.", 7),
            (None, "Six.", 7),
            ({"bytes": data, "path": None}, None, 7),
            ({"bytes": data, "path": None}, "Eight.", None),
        ]
    )
    out = tmp_path / "out"
    counts = from_huggingface(rows, out)
    assert counts == {"kept": 4, "unreadable audio": 2, "empty text": 1, "no speaker": 1}
    clips = read_manifests(out)
    assert [(c.id, c.text, c.speaker, c.seconds) for c in clips] == [
        ("00000000", "One.", "7", 0.15),
        ("00000001", "Two.", "joe", 0.15),
        ("00000002", "Three.", "7", 0.05),
        ("00000003", "Four.", "7", 0.1),
    ]
    assert all(soundfile.info(clip.audio).duration == clip.seconds for clip in clips)
    dropped = [json.loads(row)["id"] for row in (out / "dropped.jsonl").read_text().splitlines()]
    assert dropped == [f"{n:08d}" for n in range(4, 8)]
    with pytest.raises(RecipeError, match="has a manifest already"):
        from_huggingface(rows, out)
    with pytest.raises(RecipeError, match=r"no column 'speaker_id'; did you mean 'speaker'\?"):
        from_huggingface([{"audio": None, "text": "One.", "speaker": "a"}], tmp_path / "other")
    with pytest.raises(RecipeError, match="nothing of 0 items"):
        from_huggingface([], tmp_path / "empty")


def test_an_import_that_was_killed_goes_on_where_it_was(tmp_path):
    data = sound_bytes(tmp_path)
    rows = [{"audio": {"bytes": data}, "text": f"Number {n}.", "name": f"r{n}", "room": "A hall."} for n in range(3)]

    def torn():
        yield from rows[:2]
        raise KeyboardInterrupt

    options = {"speaker": "", "id": "name", "scene": "room", "split": "heldout"}
    with pytest.raises(KeyboardInterrupt):
        from_huggingface(torn(), tmp_path / "out", **options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audio"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "audio").iterdir()}
    assert len(times) == 2 and from_huggingface(rows, tmp_path / "out", **options) == {"kept": 3}
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    clips = read_manifests(tmp_path / "out", "heldout")
    assert [(c.id, c.speaker, c.scene, c.seconds) for c in clips] == [(f"r{n}", "0", "A hall.", 0.15) for n in range(3)]


def test_lhotse_cuts_become_a_folder_that_prepare_reads(tmp_path):
    def cut(name, *texts, load=lambda: np.zeros((1, 1600), np.float32) + 0.1):
        said = [SimpleNamespace(text=text, speaker="joe") for text in texts]
        return SimpleNamespace(id=name, supervisions=said, load_audio=load, sampling_rate=16_000)

    def fail():
        raise Exception("no such recording")

    cuts = [cut("a", "One."), cut("b"), cut("c", "One.", "Two."), cut("d", "Two.", load=fail)]
    assert from_lhotse(cuts, tmp_path) == {"kept": 1, "not one supervision": 2, "unreadable audio": 1}
    assert read_manifests(tmp_path) == [Clip("a", tmp_path / "audio" / "00000000.flac", "One.", "joe", 0.1)]


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_the_real_datasets_library_is_read_without_its_decoder(tmp_path):
    datasets = pytest.importorskip("datasets")
    sound_bytes(tmp_path)
    columns = {"audio": [str(tmp_path / "x.wav")] * 2, "sentence": ["One.", "Two."], "speaker_id": [1, 2]}
    made = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    for name, dataset in {"whole": made, "streamed": made.to_iterable_dataset()}.items():
        assert from_huggingface(dataset, tmp_path / name, text="sentence") == {"kept": 2}
        assert [c.text for c in read_manifests(tmp_path / name)] == ["One.", "Two."]


@pytest.mark.filterwarnings("ignore")
def test_cuts_of_the_real_lhotse_library_are_read(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    sound_bytes(tmp_path)
    recording = lhotse.Recording.from_file(tmp_path / "x.wav")
    said = lhotse.SupervisionSegment("s", recording.id, 0.0, recording.duration, text="One.", speaker="joe")
    cuts = lhotse.CutSet.from_manifests(
        lhotse.RecordingSet.from_recordings([recording]), lhotse.SupervisionSet.from_segments([said])
    )
    assert from_lhotse(cuts.trim_to_supervisions(), tmp_path / "out") == {"kept": 1}
    assert read_manifests(tmp_path / "out")[0].seconds == pytest.approx(0.15)
