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


OLD, NEW = "1" * 40, "2" * 40  # commits
PUBLISHED, OTHER, PUSHED = "bosonai/higgs-audio-v2-tokenizer", "someone/other", "someone/pushed"
# Loads audio tokenizers, each with its options, and prints the hashes of their weights; then uploads the last one.
PROGRAM = """
import hashlib, json, sys
from higgs_audio import HiggsAudioTokenizer
for name, options in json.loads(sys.argv[1]):
    tokenizer = HiggsAudioTokenizer.from_pretrained(name, **options)
    state = tokenizer.state_dict()
    weights = b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))
    print(json.dumps(hashlib.sha256(weights).hexdigest()), flush=True)
tokenizer.push_to_hub(sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(stored, dac_tokenizer, folder):
    """Returns a hub after one process, which takes seconds to start, has used it."""
    new = Path(shutil.copytree(stored["transformers"], folder / "new"))
    shutil.copy(stored["boson"] / "model.pth", new)
    shutil.copytree(stored["native"], folder / "other" / "inner")
    shutil.copytree(stored["boson"], folder / "other" / "outer")
    repositories = {PUBLISHED: {OLD: stored["boson"], NEW: new}, OTHER: {OLD: folder / "other", NEW: stored["native"]}}
    options = {"revision": OLD, "cache_dir": str(folder / "cache"), "token": "y", "subfolder": "inner"}
    loads = [(PUBLISHED, {"revision": OLD}), (PUBLISHED, {}), (OTHER, options)]
    loads += [(OTHER, options | {"local_files_only": True}), (OTHER, options | {"force_download": True})]
    state = dac_tokenizer.state_dict()
    weights = b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))
    with serve(repositories) as hub:
        digests = hub.run(folder / "home", PROGRAM, json.dumps(loads), PUSHED)
    assert digests == [hashlib.sha256(weights).hexdigest()] * len(loads)
    return hub


def downloaded(hub, repository, commit):
    """Names of the downloaded files of a commit, each as often as it was downloaded."""
    return sorted(name for place, other, name in hub.downloads if (place, other) == (repository, commit))


def test_only_the_config_and_the_weights_of_its_layout_are_downloaded_from_a_repository(hub):
    """The published repository was rewritten in place: it has two layouts, and only one of them needs the pickle."""
    assert downloaded(hub, PUBLISHED, OLD) == ["config.json", "model.pth"]
    assert downloaded(hub, PUBLISHED, NEW) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert not any("pth" in pattern for pattern in checkpoint.DOWNLOADED)


def test_the_options_of_a_repository_are_passed_on(hub, folder):
    """`subfolder` becomes part of every pattern. Nothing is downloaded for `local_files_only`."""
    first, forced = ["inner/config.json", "inner/model.safetensors"], ["inner/config.json"] * 2
    assert downloaded(hub, OTHER, OLD) == sorted([*first, *forced, "inner/model.safetensors"])
    assert downloaded(hub, OTHER, NEW) == []
    assert hub.tokens == {"y"}
    assert (folder / "cache" / "models--someone--other" / "snapshots" / OLD / "inner" / "model.safetensors").exists()


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


def test_a_pushed_tokenizer_is_unchanged_when_loaded_from_the_repository(hub, dac_tokenizer, tmp_path):
    files = hub.uploads[PUSHED].files
    assert {"config.json", "model.safetensors"} <= set(files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert same_bits(dac_tokenizer.state_dict(), HiggsAudioTokenizer.from_pretrained(tmp_path).state_dict())


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
