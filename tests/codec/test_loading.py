"""Tests of `HiggsAudioTokenizer.from_pretrained`: names, repositories and options."""

import hashlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from audio_tokenizers import LAYOUTS, same_bits
from hub import serve

from higgs_audio import NANO, checkpoint
from higgs_audio.cli.describe import describe
from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig, layout
from higgs_audio.codec.loading import LoadOptions, TransformersOptions
from higgs_audio.errors import CheckpointError, OptionError
from higgs_audio.prompt.loading import load_codec


def test_a_tokenizer_is_float32_unless_another_dtype_is_given(dac_tokenizer, tmp_path):
    state = {name: value.bfloat16() for name, value in dac_tokenizer.state_dict().items()}
    layout.write(HiggsAudioTokenizer, dac_tokenizer.config, state, tmp_path)
    load = HiggsAudioTokenizer.from_pretrained
    loaded = load(tmp_path)
    assert loaded.dtype == torch.float32 and not loaded.training
    assert all(torch.equal(value, state[key].float()) for key, value in loaded.state_dict().items())
    assert load(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "stored_as"), [("boson", torch.float32), ("transformers", torch.bfloat16)])
def test_bfloat16_weights_keep_their_values_in_every_layout(dac_tokenizer, tmp_path, name, stored_as):
    state = {key: value.bfloat16() for key, value in dac_tokenizer.state_dict().items()}
    layout.write(HiggsAudioTokenizer, dac_tokenizer.config, state, tmp_path, name)
    read = layout.read(HiggsAudioTokenizer, tmp_path)[1]
    assert {value.dtype for value in read.values()} == {stored_as}
    assert all(torch.equal(value.float(), state[key].float()) for key, value in read.items())


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, torch.device("cpu")])
def test_every_form_of_device_map_is_accepted(stored, device_map):
    loaded = HiggsAudioTokenizer.from_pretrained(stored["native"], device_map=device_map)
    assert loaded.device.type == ("cuda" if device_map == "auto" and torch.cuda.is_available() else "cpu")


def test_the_tokenizer_inside_a_whole_checkpoint_is_loaded(tiny_checkpoint):
    inside = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    for whole in (HiggsAudioTokenizer.from_pretrained(tiny_checkpoint), load_codec(tiny_checkpoint, "cpu")):
        assert same_bits(inside.state_dict(), whole.state_dict())
    assert HiggsAudioTokenizer.from_pretrained("nano").config.body == "vocos"
    assert checkpoint.open_checkpoint("nano").folder == NANO


# Loads audio tokenizers in one process, each with its options; prints the hash of their weights.
LOAD = """
import hashlib, json, sys
from higgs_audio import HiggsAudioTokenizer
for name, options in json.loads(sys.argv[1]):
    state = HiggsAudioTokenizer.from_pretrained(name, **options).state_dict()
    weights = b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))
    print(json.dumps(hashlib.sha256(weights).hexdigest()), flush=True)
"""
OLD, NEW = "1" * 40, "2" * 40  # commits
PUBLISHED = "bosonai/higgs-audio-v2-tokenizer"


@pytest.fixture(scope="module")
def digest(dac_tokenizer):
    """What `LOAD` prints for this tokenizer."""
    state = dac_tokenizer.state_dict()
    weights = b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))
    return hashlib.sha256(weights).hexdigest()


def test_only_the_config_and_the_weights_of_its_layout_are_downloaded_from_a_repository(stored, digest, tmp_path):
    """The published repository was rewritten in place: it has two layouts, and only one of them needs the pickle."""
    new = Path(shutil.copytree(stored["transformers"], tmp_path / "new"))
    shutil.copy(stored["boson"] / "model.pth", new)
    with serve({PUBLISHED: {OLD: stored["boson"], NEW: new}}) as hub:
        names = [(PUBLISHED, {"revision": OLD}), (PUBLISHED, {})]
        assert hub.run(tmp_path / "cache", LOAD, json.dumps(names)) == [digest] * 2
    assert hub.downloads == [
        *((PUBLISHED, OLD, name) for name in ("config.json", "model.pth")),
        *((PUBLISHED, NEW, name) for name in ("config.json", "model.safetensors")),
    ]
    assert not any("pth" in pattern for pattern in checkpoint.DOWNLOADED)


def test_the_options_of_a_repository_are_passed_on(stored, digest, tmp_path):
    """`subfolder` becomes part of every pattern."""
    name, cache = "someone/tokenizer", tmp_path / "other cache"
    shutil.copytree(stored["native"], tmp_path / "files" / "inner")
    shutil.copytree(stored["boson"], tmp_path / "files" / "outer")
    options = {"revision": OLD, "cache_dir": str(cache), "token": "y", "subfolder": "inner"}
    again = ({"local_files_only": True}, {"force_download": True})
    loads = [(name, options), *((name, options | more) for more in again)]
    with serve({name: {OLD: tmp_path / "files", NEW: stored["native"]}}) as hub:
        assert hub.run(tmp_path / "cache", LOAD, json.dumps(loads)) == [digest] * 3
    files = [(name, OLD, f"inner/{file}") for file in ("config.json", "model.safetensors")]
    assert hub.downloads == files * 2  # not for `local_files_only`, and again for `force_download`
    assert hub.tokens == {"y"}
    assert (cache / "models--someone--tokenizer" / "snapshots" / OLD / "inner" / "model.safetensors").exists()


def test_the_tokenizer_in_a_subfolder_is_loaded(stored, dac_tokenizer, tmp_path):
    shutil.copytree(stored["native"], tmp_path / "inner")
    local = HiggsAudioTokenizer.from_pretrained(tmp_path, subfolder="inner")
    assert same_bits(dac_tokenizer.state_dict(), local.state_dict())
    assert HiggsAudioTokenizer.from_pretrained("nano", subfolder="codec").config.body == "vocos"


@pytest.mark.parametrize("name", [None, 3, "", "x" * 300])
def test_an_unknown_tokenizer_is_a_checkpoint_error(name):
    with pytest.raises(CheckpointError, match="no model "):
        HiggsAudioTokenizer.from_pretrained(name)


@pytest.mark.parametrize("name", [*LAYOUTS, "early"])
def test_info_describes_a_tokenizer_of_every_layout(stored, dac_tokenizer, name):
    info = describe(stored[name])
    assert info["audio tokenizer"]["layout"] == name
    assert info["audio tokenizer"]["codebooks"] == "8 of 1024"
    counts = info["parameters of the audio tokenizer"]
    assert counts["total"] == f"{sum(value.numel() for value in dac_tokenizer.state_dict().values()):,}"
    assert "other" not in counts


PUSH = """
import sys
from higgs_audio import HiggsAudioTokenizer
HiggsAudioTokenizer.from_pretrained(sys.argv[1]).push_to_hub("someone/tokenizer")
"""


def test_a_pushed_tokenizer_is_unchanged_when_loaded_from_the_repository(stored, dac_tokenizer, tmp_path):
    with serve() as hub:
        hub.run(tmp_path / "cache", PUSH, stored["native"])
    files = hub.uploads["someone/tokenizer"].files
    assert {"config.json", "model.safetensors"} <= set(files)
    (tmp_path / "pushed").mkdir()
    for name, content in files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    assert same_bits(dac_tokenizer.state_dict(), HiggsAudioTokenizer.from_pretrained(tmp_path / "pushed").state_dict())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"acoustic_paddin": 480}, "did you mean 'acoustic_padding'"),
        ({"device_map": "gpu:0"}, "'cuda:0'"),
        ({"device_map": {"fc": "cpu", "fc1": "cpu"}}, "device_map"),
        ({"dtype": "nonsense"}, "dtype='nonsense'; allowed: auto, bfloat16"),
        ({"dtype": "bflot16"}, "did you mean 'bfloat16'"),
        ({"torch_dtype": torch.int8}, "dtype=torch.int8"),
        ({"dtype": 16}, "dtype=16"),
        ({"attn_implementation": "nonsense"}, "does not load with these options"),
        ({"acoustic_padding": "wide"}, "acoustic_padding cannot be used"),
        ({"block_dilations": 3}, "block_dilations cannot be used"),
        ({"acoustic_model_config": "dac"}, "acoustic_model_config cannot be used"),
        ({"cachedir": "x"}, "did you mean 'cache_dir'"),
    ],
)
def test_an_unknown_option_is_an_option_error(stored, option, message):
    with pytest.raises(OptionError, match=message):
        HiggsAudioTokenizer.from_pretrained(stored["native"], **option)


def test_weights_that_do_not_fit_the_config_are_an_error_and_not_initialized(stored):
    with pytest.raises(CheckpointError, match=r"quantizer\.quantizers\.8\.codebook\.embed"):
        HiggsAudioTokenizer.from_pretrained(stored["native"], num_codebooks=9)
    with pytest.raises(CheckpointError, match="missing"):
        HiggsAudioTokenizer.from_pretrained(stored["native"], config=HiggsAudioTokenizerConfig())


def test_the_typed_options_are_those_of_a_folder_of_transformers_and_of_the_config():
    folder = {*checkpoint.FOLDER_OPTIONS} - {"revision"}  # a separate parameter
    fields = inspect.get_annotations(HiggsAudioTokenizerConfig).keys()
    assert LoadOptions.__optional_keys__ == folder | TransformersOptions.__optional_keys__ | fields
