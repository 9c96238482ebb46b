"""Tests of manifests: valid and invalid lines, JSON Lines and Parquet, duplicates."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import soundfile
from corpus import RATE
from runs import manifest_line

from higgs_audio.data.clips import Clip
from higgs_audio.data.manifest import duplicates, read_manifests, scan
from higgs_audio.errors import MissingExtraError, RecipeError


def test_clips_are_selected_by_split_and_length_and_sorted_by_id(tmp_path):
    fields = {"text": "a", "speaker": "ava", "audio": "a.wav"}
    lines = [
        {"id": "b", "seconds": 2.0, **fields},
        {"id": "c", "seconds": 9.0, **fields},
        {"id": "d", "seconds": 2.0, "split": "heldout", **fields},
    ]
    (tmp_path / "manifest-0.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "manifest-1.jsonl").write_text(json.dumps({"id": "a", "seconds": 1.0, **fields}), encoding="utf-8")
    assert [clip.id for clip in read_manifests(tmp_path, max_seconds=8)] == ["a", "b"]
    (heldout,) = read_manifests(tmp_path, "heldout")
    assert heldout == Clip("d", tmp_path / "a.wav", "a", "ava", 2.0, "heldout")
    with pytest.raises(RecipeError, match="'tuning'"):
        read_manifests(tmp_path, "tuning")


BAD_LINES = [
    ("{", "Expecting"),
    ("[1]", "expected an object with a clip's fields, got a list"),
    (json.dumps({"id": "a", "audio": "a.wav", "text": "A."}), "no 'speaker'"),
    (json.dumps(manifest_line(id="")), "'id' is empty"),
    (json.dumps(manifest_line(text=["A."])), "text="),
    (json.dumps(manifest_line(seconds="1")), "seconds='1' must be a number"),
    (json.dumps(manifest_line(seconds=float("nan"))), "seconds=nan"),
    (json.dumps(manifest_line(phones=[["a", 0]])), "phones="),
    (json.dumps(manifest_line(scene=3.5)), "scene=3.5 must be text"),
]


@pytest.mark.parametrize(("text", "problem"), BAD_LINES, ids=[problem for _, problem in BAD_LINES])
def test_an_invalid_line_is_reported_with_its_file_and_number(tmp_path, text, problem):
    (tmp_path / "manifest-1.jsonl").write_text(f"{json.dumps(manifest_line(id='b'))}\n\n{text}\n", encoding="utf-8")
    clips, bad = scan(tmp_path, "train")
    assert [clip.id for clip in clips] == ["b"]
    assert [one.where for one in bad] == ["manifest-1.jsonl:3"]
    with pytest.raises(RecipeError, match=r"manifest-1\.jsonl:3: .*" + problem.split("=")[0]):
        read_manifests(tmp_path)
    assert problem in bad[0].problem


def test_an_id_is_unique_within_a_split(tmp_path):
    lines = [manifest_line(), manifest_line(split="heldout"), manifest_line(text="B.")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    clips, bad = scan(tmp_path, "train")
    assert [clip.text for clip in clips] == ["A."]
    assert (bad[0].where, bad[0].problem) == ("manifest.jsonl:3", "another clip has the id 'a'")
    assert scan(tmp_path, "heldout")[1] == []


def test_a_line_in_latin_1_is_invalid(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(json.dumps(manifest_line(text="é"), ensure_ascii=False).encode("latin-1"))
    assert "utf-8" in scan(tmp_path, "train")[1][0].problem


def test_only_a_line_feed_ends_a_line(tmp_path):
    """Texts from the web contain other separators, which JSON need not escape; `splitlines` splits there."""
    (tmp_path / "manifest.jsonl").write_text(json.dumps(manifest_line(text="One\u2028two."), ensure_ascii=False) + "\n")
    assert read_manifests(tmp_path)[0].text == "One\u2028two."


def test_a_missing_length_is_read_from_the_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(12_000), RATE)
    fields = {name: value for name, value in manifest_line(id=7).items() if name != "seconds"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(fields))
    assert read_manifests(tmp_path) == [Clip("7", tmp_path / "a.wav", "A.", "ava", 0.5)]


def test_a_parquet_manifest_gives_the_same_clips_as_json_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    phones = [["a", 0.0, 0.5], ["b", 0.5, 1.0]]
    rows = [
        manifest_line(speaker=3, split="train", scene="A hall.", reference="b", phones=None),
        manifest_line(id="b", speaker=3, split=None, scene=None, reference=None),
        manifest_line(id="c", speaker=3, text=None),
        manifest_line(id=None, speaker=3),
    ]
    (tmp_path / "json").mkdir()
    (tmp_path / "parquet").mkdir()
    (tmp_path / "json" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "parquet" / "manifest.parquet")
    (clips, bad), (expected, expected_bad) = (scan(tmp_path / kind, "train") for kind in ("parquet", "json"))
    bare = [[dataclasses.replace(clip, audio=clip.audio.name) for clip in found] for found in (clips, expected)]
    assert bare[0] == bare[1] and len(clips) == 3
    assert [b.problem for b in bad] == [b.problem for b in expected_bad] and bad[0].where == "manifest.parquet:4"
    table = pyarrow.Table.from_pylist(
        [manifest_line(phones=[{"phone": p, "start": a, "end": b} for p, a, b in phones])]
    )
    parquet.write_table(table, tmp_path / "parquet" / "manifest.parquet")
    assert read_manifests(tmp_path / "parquet")[0].phones == tuple(map(tuple, phones))
    (tmp_path / "parquet" / "manifest.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RecipeError, match="cannot be read as Parquet"):
        read_manifests(tmp_path / "parquet")


def test_the_error_of_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"'pyarrow' .* pip install 'higgs-audio\[train\]'"):
        read_manifests(tmp_path)


def test_a_duplicate_has_the_text_and_the_file_content_of_an_earlier_clip(tmp_path):
    for name, data in {"a": b"one", "b": b"one", "c": b"two", "d": b"one", "e": b"three"}.items():
        (tmp_path / name).write_bytes(data)
    texts = {"a": "A.", "b": "A.", "c": "A.", "d": "Another.", "e": "A.", "gone": "A."}
    clips = [Clip(name, tmp_path / name, text, "ava", 1.0) for name, text in texts.items()]
    assert duplicates([*clips, Clip("again", tmp_path / "d", "Another.", "joe", 1.0)]) == {"b", "again"}
