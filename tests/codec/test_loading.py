"""`HiggsAudioTokenizer.from_pretrained`: names, repositories and options."""

import inspect
import shutil

import pytest
import torch
from audio_tokenizers import LAYOUTS, same_bits
from huggingface_hub import HfApi

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


def test_only_the_config_and_the_weights_of_its_layout_are_downloaded_from_a_repository(
    monkeypatch, stored, dac_tokenizer
):
    """The published repository was rewritten in place: it has two layouts, and only one of them needs the pickle."""
    requests = []

    def snapshot_download(repository, revision, allow_patterns):
        requests.append((repository, revision, tuple(allow_patterns)))
        return str(stored["boson" if revision == "9d4988fb" else "transformers"])

    monkeypatch.setattr("higgs_audio.checkpoint.find.snapshot_download", snapshot_download)
    name = "bosonai/higgs-audio-v2-tokenizer"
    for revision, weights in (("9d4988fb", ("model.pth",)), (None, layout.WEIGHT_PATTERNS["transformers"])):
        requests.clear()
        loaded = HiggsAudioTokenizer.from_pretrained(name, revision=revision)
        assert same_bits(dac_tokenizer.state_dict(), loaded.state_dict())
        assert requests == [(name, revision, ("*.json", "codec/*")), (name, revision, ("config.json", *weights))]
    assert not any("pth" in pattern for pattern in checkpoint.DOWNLOADED)


def test_the_options_of_a_repository_are_passed_on(monkeypatch, stored, dac_tokenizer, tmp_path):
    """`subfolder` becomes part of every pattern."""
    shutil.copytree(stored["native"], tmp_path / "inner")
    requests = []

    def snapshot_download(repository, **options):
        requests.append(options)
        return str(tmp_path)

    monkeypatch.setattr("higgs_audio.checkpoint.find.snapshot_download", snapshot_download)
    hub = {"revision": "v1", "cache_dir": "x", "token": "y", "local_files_only": True, "force_download": False}
    loaded = HiggsAudioTokenizer.from_pretrained("someone/tokenizer", **hub, subfolder="inner")
    assert same_bits(dac_tokenizer.state_dict(), loaded.state_dict())
    weights = [f"inner/{name}" for name in layout.WEIGHT_PATTERNS["native"]]
    patterns = ["inner/*.json", "inner/codec/*"], ["inner/config.json", *weights]
    assert requests == [{**hub, "allow_patterns": names} for names in patterns]
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


def test_a_pushed_tokenizer_is_unchanged_when_loaded_from_the_repository(monkeypatch, dac_tokenizer, tmp_path):
    def create_commit(self, repo_id, operations, **_):
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, tmp_path / operation.path_in_repo)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    dac_tokenizer.push_to_hub("someone/tokenizer")
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
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


def test_weights_that_do_not_fit_the_config_are_an_error_and_not_initialised(stored):
    with pytest.raises(CheckpointError, match=r"quantizer\.quantizers\.8\.codebook\.embed"):
        HiggsAudioTokenizer.from_pretrained(stored["native"], num_codebooks=9)
    with pytest.raises(CheckpointError, match="missing"):
        HiggsAudioTokenizer.from_pretrained(stored["native"], config=HiggsAudioTokenizerConfig())


def test_the_typed_options_are_those_of_a_folder_of_transformers_and_of_the_config():
    folder = {*checkpoint.FOLDER_OPTIONS} - {"revision"}  # which is a parameter
    fields = inspect.get_annotations(HiggsAudioTokenizerConfig).keys()
    assert LoadOptions.__optional_keys__ == folder | TransformersOptions.__optional_keys__ | fields
