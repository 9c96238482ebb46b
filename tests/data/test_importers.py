"""Tests of imports of data sets of other libraries."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from higgs_audio.data.clips import Clip
from higgs_audio.data.importers import from_huggingface, from_lhotse
from higgs_audio.data.manifest import read_manifests
from higgs_audio.errors import RecipeError


@dataclasses.dataclass
class AudioFeature:
    decode: bool = True


class Rows(list):
    """Behaves like a Hugging Face data set, which decodes files unless the column is cast."""

    @property
    def features(self):
        return {"audio": AudioFeature()}

    def cast_column(self, name, feature):
        assert (name, feature) == ("audio", AudioFeature(decode=False))
        return list(self)


def sound_bytes(folder, num_samples=2400, rate=16_000):
    soundfile.write(folder / "x.wav", 0.1 * np.sin(np.arange(num_samples) / 5), rate)
    return (folder / "x.wav").read_bytes()


def test_a_hugging_face_data_set_becomes_a_folder_with_a_manifest(tmp_path):
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
    with pytest.raises(RecipeError, match="already has a manifest"):
        from_huggingface(rows, out)
    with pytest.raises(RecipeError, match=r"no column 'speaker_id'; did you mean 'speaker'\?"):
        from_huggingface([{"audio": None, "text": "One.", "speaker": "a"}], tmp_path / "other")
    with pytest.raises(RecipeError, match="none of 0 items"):
        from_huggingface([], tmp_path / "empty")


def test_an_interrupted_import_continues(tmp_path):
    data = sound_bytes(tmp_path)
    rows = [{"audio": {"bytes": data}, "text": f"Number {n}.", "name": f"r{n}", "room": "A hall."} for n in range(3)]

    def interrupted():
        yield from rows[:2]
        raise KeyboardInterrupt

    options = {"speaker": "", "id": "name", "scene": "room", "split": "heldout"}
    with pytest.raises(KeyboardInterrupt):
        from_huggingface(interrupted(), tmp_path / "out", **options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audio"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "audio").iterdir()}
    assert len(times) == 2 and from_huggingface(rows, tmp_path / "out", **options) == {"kept": 3}
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    clips = read_manifests(tmp_path / "out", "heldout")
    assert [(c.id, c.speaker, c.scene, c.seconds) for c in clips] == [(f"r{n}", "0", "A hall.", 0.15) for n in range(3)]


def test_lhotse_cuts_become_a_folder_with_a_manifest(tmp_path):
    def cut(name, *texts, load=lambda: np.zeros((1, 1600), np.float32) + 0.1):
        supervisions = [SimpleNamespace(text=text, speaker="joe") for text in texts]
        return SimpleNamespace(id=name, supervisions=supervisions, load_audio=load, sampling_rate=16_000)

    def fail():
        raise Exception("no such recording")

    cuts = [cut("a", "One."), cut("b"), cut("c", "One.", "Two."), cut("d", "Two.", load=fail)]
    assert from_lhotse(cuts, tmp_path) == {"kept": 1, "not one supervision": 2, "unreadable audio": 1}
    assert read_manifests(tmp_path) == [Clip("a", tmp_path / "audio" / "00000000.flac", "One.", "joe", 0.1)]


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_the_datasets_library_is_read_without_its_decoder(tmp_path):
    datasets = pytest.importorskip("datasets")
    sound_bytes(tmp_path)
    columns = {"audio": [str(tmp_path / "x.wav")] * 2, "sentence": ["One.", "Two."], "speaker_id": [1, 2]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    for name, rows in {"whole": dataset, "streamed": dataset.to_iterable_dataset()}.items():
        assert from_huggingface(rows, tmp_path / name, text="sentence") == {"kept": 2}
        assert [c.text for c in read_manifests(tmp_path / name)] == ["One.", "Two."]


@pytest.mark.filterwarnings("ignore")
def test_cuts_of_the_lhotse_library_are_read(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    sound_bytes(tmp_path)
    recording = lhotse.Recording.from_file(tmp_path / "x.wav")
    supervision = lhotse.SupervisionSegment("s", recording.id, 0.0, recording.duration, text="One.", speaker="joe")
    cuts = lhotse.CutSet.from_manifests(
        lhotse.RecordingSet.from_recordings([recording]), lhotse.SupervisionSet.from_segments([supervision])
    )
    assert from_lhotse(cuts.trim_to_supervisions(), tmp_path / "out") == {"kept": 1}
    assert read_manifests(tmp_path / "out")[0].seconds == pytest.approx(0.15)
