"""Tests of encoded clips on disk: parts, damaged files, and the fingerprint of the audio tokenizer."""

import json
import os

import numpy as np
import pytest
import torch
from killing import hidden_names, run_until_rename
from runs import contents
from safetensors.numpy import load_file, save_file

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.shards import codec_fingerprint, metadata_of, open_part, read_encoded_clips, write_part
from higgs_audio.errors import RecipeError


def test_clips_are_views_of_mapped_files_and_no_file_stays_open(encoded):
    """The number of parts can exceed the number of files that a process may open."""
    open_before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    clips = read_encoded_clips(encoded)
    assert all(not clip.codes.flags.owndata and clip.codes.dtype == np.uint16 for clip in clips)
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == len(open_before)
    arrays = load_file(encoded / "part-0001.safetensors")
    assert np.array_equal(np.concatenate([clip.codes for clip in clips[2:4]], axis=1), arrays["codes"])


def truncate_file(folder):
    file = folder / "part-0001.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    return "part-0001 cannot be read"


def swap_files(folder):
    """Swaps the codes of two parts, so that they do not belong to their index."""
    (folder / "part-0001.safetensors").write_bytes((folder / "part-0000.safetensors").read_bytes())
    return r"part-0001 has codes of the shape \[8, \d+\] and an index of \d+ frames"


def delete_file(folder):
    (folder / "part-0001.safetensors").unlink()
    return "part-0001 cannot be read"


def truncate_index(folder):
    path = folder / "part-0001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    return "part-0001 cannot be read"


def change_dtype(folder):
    arrays = load_file(folder / "part-0001.safetensors")
    save_file({name: array.astype(np.int32) for name, array in arrays.items()}, folder / "part-0001.safetensors")
    return "part-0001 cannot be read: codes is I32"


def change_phones(folder):
    arrays = load_file(folder / "part-0001.safetensors")
    save_file({**arrays, "phones": np.zeros(3, np.uint16)}, folder / "part-0001.safetensors")
    return "part-0001 has 3 phones"


@pytest.mark.parametrize(
    "damage", [truncate_file, swap_files, delete_file, truncate_index, change_dtype, change_phones]
)
def test_the_error_of_damaged_parts_names_all_of_them(copy, damage):
    message = damage(copy)
    (copy / "part-0002.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match=rf"{message}.*; part-0002 .*prepare` again"):
        read_encoded_clips(copy)


def test_the_fingerprint_depends_on_the_encoder_and_not_on_the_decoder(tiny_checkpoint):
    fingerprints = []
    for part in (None, "acoustic_decoder", "fc2", "acoustic_encoder", "semantic_model", "quantizer", "fc"):
        codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
        with torch.no_grad():
            for weight in codec.get_submodule(part).parameters() if part else ():
                weight.add_(0.01)
        fingerprints.append(codec_fingerprint(codec)["codec"])
    assert fingerprints[0] == fingerprints[1] == fingerprints[2]
    assert len(set(fingerprints)) == 5
    assert {n: v for n, v in codec_fingerprint(codec).items() if n != "codec"} == {
        "num_codebooks": "8",
        "codebook_size": "1024",
        "frame_rate": "25",
        "sample_rate": "24000",
    }


def test_parts_of_different_audio_tokenizers_are_an_error(encoded, copy):
    file = copy / "part-0001.safetensors"
    fingerprint = {**json.loads((encoded / "prepared.json").read_text())["codec"], "codec": "another"}
    save_file(load_file(file), file, metadata_of(fingerprint))
    with pytest.raises(RecipeError, match="part-0001' has codes of another audio tokenizer: codec is another there"):
        read_encoded_clips(copy)


def test_parts_without_a_fingerprint_are_read(encoded, copy):
    """Earlier versions wrote no fingerprint."""
    for file in copy.glob("*.safetensors"):
        save_file(load_file(file), file)
    fingerprint = json.loads((encoded / "prepared.json").read_text())["codec"]
    found, expected = (read_encoded_clips(folder, fingerprint) for folder in (copy, encoded))
    assert [clip.id for clip in found] == [clip.id for clip in expected]
    with pytest.raises(RecipeError, match="num_codebooks is 8 there and 4 here"):
        read_encoded_clips(copy, {**fingerprint, "num_codebooks": "4"})


WRITE = """
from pathlib import Path
import numpy as np
from higgs_audio.data.shards import write_part
write_part(Path(sys.argv[1]), [], np.zeros((8, 0), np.uint16), np.zeros(0, np.uint16), {})
"""


def test_a_killed_write_keeps_the_part_and_the_next_one_removes_its_temporary_file(encoded, copy):
    path, before = copy / "part-0001", contents(copy)
    part = open_part(path.with_suffix(".jsonl"))
    run_until_rename(WRITE, path)
    (leftover,) = hidden_names(copy)
    assert leftover.startswith(".part-0001.safetensors.")
    assert [clip.id for clip in read_encoded_clips(copy)] == [clip.id for clip in read_encoded_clips(encoded)]
    write_part(path, part.lines, part.codes.copy(), part.phones.copy(), part.fingerprint)
    assert contents(copy) == before
