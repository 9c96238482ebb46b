"""Tests of stored audio tokenizers that are damaged, incomplete, malicious or of another kind."""

import os
import pickle
import re
import traceback

import pytest
import torch
from audio_tokenizers import LAYOUTS, change_config, change_weights, same_bits
from full_disk import file_size_limit

from higgs_audio.codec import HiggsAudioTokenizer, layout
from higgs_audio.errors import CheckpointError, OptionError


@pytest.mark.parametrize("name", [*LAYOUTS, "early"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_a_checkpoint_error(folder, name, share):
    path = folder(name)
    (file,) = path.glob("model.*")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        layout.read(HiggsAudioTokenizer, path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("boson", "encoder.block.1.block.0.block.1.weight_g"),
        ("boson", "quantizer.vq.layers.3._codebook.embed"),
        ("transformers", "acoustic_encoder.block.0.res_unit1.conv1.weight"),
        ("early", "fc1.weight"),
        ("native", "semantic_model.encoder.layers.1.attention.q_proj.weight"),
    ],
)
def test_missing_unexpected_and_misshapen_tensors_are_listed(folder, name, tensor):
    def change(state):
        state[f"{tensor}.more"] = state.pop(tensor)
        state[other] = state[other][:1].clone()
        state["strange"] = torch.zeros(3, dtype=torch.int64)

    other = {"boson": "fc_prior.weight"}.get(name, "fc.weight")
    path = folder(name)
    change_weights(path, change)
    with pytest.raises(CheckpointError) as error:
        layout.read(HiggsAudioTokenizer, path)
    for part in (
        f"1 missing ({tensor})",
        "2 unexpected (",
        f"{tensor}.more",
        f"{other} [1, 32]",
        "[32, 32]",
        "strange",
    ):
        assert part in str(error.value)


def test_a_long_list_of_missing_tensors_is_shortened(folder):
    path = folder("native")
    change_weights(path, lambda state: [state.pop(name) for name in list(state) if name.startswith("semantic_model")])
    with pytest.raises(CheckpointError, match=r"and \d+ more\)"):
        layout.read(HiggsAudioTokenizer, path)


def remove_codebooks(state, count):
    """Removes all codebooks but the first `count`."""
    for name in [name for name in state if name.startswith("quantizer") and int(re.search(r"\d+", name)[0]) >= count]:
        del state[name]


def test_the_weights_determine_the_number_of_codebooks_when_bandwidths_are_of_sixteen(folder, dac_tokenizer):
    path = folder("transformers")
    change_config(path, target_bandwidths=[0.5, 1, 1.5, 2, 4])
    config, state = layout.read(HiggsAudioTokenizer, path)
    assert config.num_codebooks == 8
    assert same_bits(dac_tokenizer.state_dict(), state)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("transformers", {"num_quantizers": 16}, "has num_quantizers 16, but the weights have 8"),
        ("early", {"num_quantizers": 16}, "has num_quantizers 16, but the weights have 8"),
        ("boson", {"n_q": 16}, r"missing \(quantizer\.vq\.layers\.10"),
        ("boson", {"n_q": 6}, r"unexpected \(quantizer\.vq\.layers\.6"),
        ("native", {"num_codebooks": 16}, r"missing \(quantizer\.quantizers\.10"),
        ("transformers", {"codebook_size": 1026}, r"embed \[1024, 6\] instead of \[1026, 6\]"),
        ("boson", {"bins": 1026}, r"embed \[1024, 6\] instead of \[1026, 6\]"),
        ("boson", {"bins": [8, 8, 8]}, "bins"),
        ("boson", {"semantic_techer": "wavlm_base_plus"}, "known: hubert_base_general"),
        ("boson", {"D": "wide"}, "config.json cannot be used"),
        ("transformers", {"strides": [2, 1]}, "strides"),
        ("transformers", {"semantic_model_config": {"model_type": "wavlm"}}, "'hubert'"),
        ("transformers", {"acoustic_model_config": {"model_type": "encodec"}}, "'dac'"),
        ("native", {"acoustic_model_config": {"body": "dacs"}}, "did you mean 'dac'"),
        ("native", {"model_type": "encodec"}, "known: higgs_audio_v2_tokenizer, higgs_audio_tokenizer, and"),
        ("native", {"model_type": "higgs_audio_v2"}, "known: higgs_audio_v2_tokenizer"),
    ],
)
def test_a_config_of_other_weights_or_of_another_model_is_a_checkpoint_error(folder, name, fields, message):
    path = folder(name)
    change_config(path, **fields)
    with pytest.raises(CheckpointError, match=message):
        HiggsAudioTokenizer.from_pretrained(path)


def test_another_number_of_codebooks_than_the_bandwidths_imply_is_a_checkpoint_error(folder):
    path = folder("transformers")
    change_weights(path, lambda state: remove_codebooks(state, 6))
    with pytest.raises(CheckpointError, match="8 codebooks, but the weights have 6"):
        layout.read(HiggsAudioTokenizer, path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"config"', '{"n_filters": 32}'])
def test_an_invalid_config_is_a_checkpoint_error(folder, content):
    path = folder("native")
    (path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        layout.read(HiggsAudioTokenizer, path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_error_for_a_folder_without_weights_names_the_missing_file(folder, name):
    path = folder(name)
    (file,) = path.glob("model.*")
    file.unlink()
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        HiggsAudioTokenizer.from_pretrained(path)


class Exploit:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "older torch", "pickle"])
def test_a_pickle_with_code_is_rejected_and_not_executed(folder, tmp_path, form):
    path, witness = folder("boson"), tmp_path / "witness"
    state = torch.load(path / "model.pth", weights_only=True) | {"fc_prior.weight": Exploit(witness)}
    if form == "pickle":
        (path / "model.pth").write_bytes(pickle.dumps({"weights": Exploit(witness)}, protocol=2))
    else:
        torch.save(state, path / "model.pth", _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError, match=r"tensors \(posix.mkdir\); none of it was executed") as raised:
        HiggsAudioTokenizer.from_pretrained(path)
    printed = "".join(traceback.format_exception(raised.value))
    assert "weights_only" not in printed and "add_safe_globals" not in printed, "torch's advice on how to execute it"
    assert not witness.exists()
    torch.load(path / "model.pth", weights_only=False) if form == "torch" else None
    assert witness.exists() == (form == "torch"), "the exploit works if the pickle is trusted"


def test_a_pickle_of_another_type_than_a_mapping_is_a_checkpoint_error(folder):
    path = folder("boson")
    torch.save([torch.zeros(3)], path / "model.pth")
    with pytest.raises(CheckpointError, match="contains a list"):
        layout.read(HiggsAudioTokenizer, path)


def test_a_write_that_fails_creates_no_file(dac_tokenizer, tmp_path):
    state = dac_tokenizer.state_dict()
    state.pop("fc.weight")
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        layout.write(HiggsAudioTokenizer, dac_tokenizer.config, state, tmp_path / "out", "boson")
    with pytest.raises(OptionError, match="did you mean 'boson'"):
        layout.write(HiggsAudioTokenizer, dac_tokenizer.config, state, tmp_path / "out", "bosson")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_files_unchanged(dac_tokenizer, tmp_path):
    config, state = dac_tokenizer.config, dac_tokenizer.state_dict()
    layout.write(HiggsAudioTokenizer, config, state, tmp_path / "out", "native")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with file_size_limit(20_000), pytest.raises(CheckpointError, match="File too large"):
        layout.write(HiggsAudioTokenizer, config, state, tmp_path / "out", "transformers")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
