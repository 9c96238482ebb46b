"""Tests of loading and saving a processor: hub options and invalid files."""

import json
import shutil

import pytest
from full_disk import file_size_limit
from transformers import PreTrainedTokenizerFast

from higgs_audio import AutoProcessor, AutoTokenizer, HiggsAudioForConditionalGeneration, HiggsAudioTokenizer
from higgs_audio.errors import CheckpointError, OptionError
from higgs_audio.prompt.config import ProcessorConfig, read_processor_config
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.speech.voices import read_voices

COMMIT = "1" * 40
HERE = {"local_files_only": True, "token": False}


@pytest.fixture
def cache(tiny_checkpoint, tmp_path):
    """A cache as the hub client writes it: org/tiny holds the tiny checkpoint, itself and in a subfolder."""
    repository = tmp_path / "cache" / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_checkpoint, snapshot)
    shutil.copytree(tiny_checkpoint, snapshot / "second")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


@pytest.mark.parametrize("subfolder", [None, "second"])
@pytest.mark.parametrize("kind", [HiggsAudioProcessor, AutoProcessor, HiggsAudioForConditionalGeneration])
def test_a_processor_accepts_the_hub_options_of_a_model(cache, kind, subfolder):
    loaded = kind.from_pretrained("org/tiny", cache_dir=cache, revision="main", subfolder=subfolder, **HERE)
    assert isinstance(loaded, HiggsAudioForConditionalGeneration) or loaded.audio_tokenizer is not None


def test_a_text_tokenizer_accepts_the_hub_options(cache):
    loaded = AutoTokenizer.from_pretrained("org/tiny", cache_dir=cache, subfolder="second", **HERE)
    assert isinstance(loaded, PreTrainedTokenizerFast)


def test_an_audio_tokenizer_of_another_repository_is_read_from_the_same_cache(cache, tiny_checkpoint, tmp_path):
    """The revision is that of the checkpoint, not of the repository that it names."""
    elsewhere = tmp_path / "elsewhere"
    HiggsAudioProcessor.from_pretrained(tiny_checkpoint).tokenizer.save_pretrained(elsewhere)
    (elsewhere / "processor_config.json").write_text(json.dumps({"codec": "org/tiny"}))
    loaded = HiggsAudioProcessor.from_pretrained(elsewhere, cache_dir=cache, revision="v9", **HERE)
    assert isinstance(loaded.audio_tokenizer, HiggsAudioTokenizer)


def test_a_repository_or_folder_of_a_processor_alone_loads(cache):
    """As `push_to_hub` writes it. Earlier, it was rejected because it has no model config."""
    folder = cache / "models--org--tiny" / "snapshots" / COMMIT
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    for kind in (HiggsAudioProcessor, AutoProcessor):
        assert kind.from_pretrained("org/tiny", cache_dir=cache, **HERE).audio_tokenizer is not None
        assert kind.from_pretrained(folder).audio_tokenizer is not None
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"without tokenizer\.json"):
        HiggsAudioProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", [None, 5, "", "no/such/folder", "a\0b", "x" * 5000])
def test_an_invalid_name_is_rejected(name):
    with pytest.raises(CheckpointError, match="no model"):
        HiggsAudioProcessor.from_pretrained(name)


def test_a_subfolder_of_a_folder_is_read(cache):
    folder = cache / "models--org--tiny" / "snapshots" / COMMIT
    shutil.rmtree(folder / "codec")
    assert HiggsAudioProcessor.from_pretrained(folder).audio_tokenizer is None
    for kind in (HiggsAudioProcessor, AutoProcessor):
        assert kind.from_pretrained(folder, subfolder="second").audio_tokenizer is not None
    with pytest.raises(CheckpointError, match="third"):
        HiggsAudioProcessor.from_pretrained(folder, subfolder="third")


# Saving.


def test_a_processor_is_saved_completely_or_not_at_all(tiny_checkpoint, tmp_path):
    processor = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    processor.save_pretrained(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir() if path.is_file()}
    assert not any(b".part" in content for content in files.values())
    assert len(files["tokenizer.json"]) > 2000
    with file_size_limit(2000), pytest.raises(CheckpointError, match="File too large"):
        processor.save_pretrained(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir() if path.is_file()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_saving_rejects_a_file_and_unknown_options(tiny_checkpoint, tmp_path):
    processor = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        processor.save_pretrained(tmp_path / "file")
    with pytest.raises(OptionError, match="did you mean 'private'"):
        processor.save_pretrained(tmp_path / "folder", privat=True)


# Invalid files.


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"5", b"{", b'{"model": 5}', b'{"model": {"type": "BPE"}}', b"null", b"\xff"]
)
def test_an_invalid_tokenizer_is_rejected(copy, content):
    (copy / "tokenizer.json").write_bytes(content)
    for kind in (HiggsAudioProcessor, AutoTokenizer):
        with pytest.raises(CheckpointError, match=r"the tokenizer in .* does not load"):
            kind.from_pretrained(copy)


@pytest.mark.parametrize("content", ["[]", "5", '{"added_tokens_decoder": 5}', '{"bos_token": 5}'])
def test_invalid_settings_of_a_tokenizer_are_rejected(copy, content):
    (copy / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* does not load"):
        HiggsAudioProcessor.from_pretrained(copy)


@pytest.mark.parametrize("content", ["", "[]", "5", "{", "null"])
def test_an_invalid_processor_config_is_rejected(copy, content):
    (copy / "processor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"processor_config\.json"):
        HiggsAudioProcessor.from_pretrained(copy)


FIELDS = [
    ("audio_num_codebooks", "8"),
    ("audio_num_codebooks", 0),
    ("audio_num_codebooks", True),
    ("audio_codebook_size", 1024.0),
    ("audio_codebook_size", -1),
    ("sampling_rate", None),
    ("text_frontend", 5),
    ("text_frontend", ["none"]),
    ("codec", None),
    ("codec", ""),
    ("codec", {"name": "x"}),
    ("encode_whisper_embed", 1),
    ("encode_audio_in_tokens", "yes"),
    ("num_mel_bins", [128]),
    ("window_seconds", 30.0),
]


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_every_field_of_the_config_has_its_type(tmp_path, name, value):
    with pytest.raises(OptionError, match=name):
        ProcessorConfig(**{name: value})
    (tmp_path / "processor_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(CheckpointError, match=rf"processor_config\.json does not fit: {name}"):
        read_processor_config(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_encoder_config": 5},
        {"audio_encoder_config": {"max_source_positions": "1500"}},
        {"audio_encoder_config": {"max_source_positions": 1}},
        {"audio_encoder_config": {"num_mel_bins": None}},
        {"encode_whisper_embed": "true"},
    ],
)
def test_the_audio_fields_of_the_original_config_are_checked(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"config\.json does not fit"):
        read_processor_config(tmp_path)


@pytest.mark.parametrize(
    "entry",
    ["5", "{}", "null", '{"profile": 5}', '{"profile": ""}', '{"profile": "A\\nB"}', '{"profile": "A", "x": 5}'],
)
def test_invalid_voices_are_rejected(tmp_path, entry):
    (tmp_path / "voices.json").write_text(f'{{"ava": {entry}}}')
    with pytest.raises(CheckpointError, match=r"voices\.json must be like"):
        read_voices(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "5", "null", "{"])
def test_a_voices_file_that_is_not_an_object_is_rejected(tmp_path, content):
    (tmp_path / "voices.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"voices\.json"):
        read_voices(tmp_path)
