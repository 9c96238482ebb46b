"""Tests of files of codes."""

import json

import pytest
import torch
from audio_tokenizers import make_codes
from safetensors.torch import save_file

from higgs_audio.codec import HiggsAudioTokenizerConfig
from higgs_audio.codec.file import load_codes, save_codes
from higgs_audio.errors import CodesError

CONFIG = HiggsAudioTokenizerConfig()


@pytest.mark.parametrize("num_codebooks", [1, 8])
def test_saved_codes_are_loaded_unchanged(tmp_path, num_codebooks):
    codes = make_codes(25)[0, :num_codebooks]
    save_codes(codes, tmp_path / "x.safetensors", CONFIG)
    loaded = load_codes(tmp_path / "x.safetensors", CONFIG)
    assert torch.equal(loaded, codes) and loaded.dtype == torch.int64
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_holds_int16_codes_and_the_rates_of_the_tokenizer(tmp_path):
    save_codes(make_codes(25)[0], tmp_path / "x.safetensors", CONFIG)
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header == {
        "__metadata__": {"sample_rate": "24000", "hop_length": "960"},
        "codes": {"dtype": "I16", "shape": [8, 25], "data_offsets": [0, 400]},
    }


def test_codes_of_another_program_need_no_metadata(tmp_path):
    codes = make_codes(3)[0]
    save_file({"codes": codes.int(), "more": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert torch.equal(load_codes(tmp_path / "x.safetensors", CONFIG), codes)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"codes": torch.zeros(8, 5, dtype=torch.int16)}, {"hop_length": "640"}, "'hop_length': '640'.*'960'"),
        ({"code": torch.zeros(8, 5, dtype=torch.int16)}, None, "contains code; expected a tensor 'codes'"),
        ({"codes": torch.zeros(8, 5)}, None, "float32: expected integers"),
        ({"codes": torch.zeros(8, dtype=torch.int16)}, None, "1 to 8 codebooks"),
        ({"codes": torch.zeros(9, 5, dtype=torch.int16)}, None, "1 to 8 codebooks"),
        ({"codes": torch.zeros(8, 0, dtype=torch.int16)}, None, "1 to 8 codebooks"),
        ({"codes": torch.full((8, 5), 1024, dtype=torch.int16)}, None, "from 1024 to 1024; allowed: 0 to 1023"),
        ({"codes": torch.full((8, 5), -1, dtype=torch.int16)}, None, "from -1 to -1; allowed: 0 to 1023"),
    ],
)
def test_a_file_of_anything_but_codes_of_the_tokenizer_is_a_codes_error(tmp_path, tensors, metadata, message):
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CodesError, match=message):
        load_codes(tmp_path / "x.safetensors", CONFIG)


def test_a_missing_or_damaged_file_is_a_codes_error(tmp_path):
    with pytest.raises(CodesError, match=r"missing' is not a file"):
        load_codes(tmp_path / "missing", CONFIG)
    (tmp_path / "damaged").write_bytes(b"codes")
    with pytest.raises(CodesError, match="is not a safetensors file"):
        load_codes(tmp_path / "damaged", CONFIG)


def test_codes_that_cannot_be_saved_are_a_codes_error_and_leave_no_file(tmp_path):
    for codes in (make_codes(5), torch.zeros(8, 5)):
        with pytest.raises(CodesError, match="expected integers"):
            save_codes(codes, tmp_path / "x.safetensors", CONFIG)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "x.safetensors", tmp_path / "folder"):
        with pytest.raises(CodesError, match="cannot be written"):
            save_codes(make_codes(5)[0], path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
