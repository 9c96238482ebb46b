"""Helpers for tests of the audio tokenizer: codes, and changes of stored tokenizers."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from higgs_audio.codec import boson

LAYOUTS = ("boson", "transformers", "native")


def make_codes(num_frames, batch=1, seed=0):
    return torch.randint(0, 1024, (batch, 8, num_frames), generator=torch.Generator().manual_seed(seed))


def write_early(source, target):
    """Converts a folder from the current Hugging Face layout to the early layout, as its implementation wrote it."""
    shutil.copytree(source, target)
    change_config(
        target,
        model_type="higgs_audio_tokenizer",
        architectures=["HiggsAudioTokenizer"],
        num_quantizers=8,
        target_bandwidths=[0.5, 1, 1.5, 2, 4],
        downsample_mode="step_down",
        pad=160,
    )


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def change_weights(folder, change):
    """Rewrites the weights after `change(state)`."""
    if (folder / "model.pth").exists():
        state = torch.load(folder / "model.pth", weights_only=True)
        change(state)
        torch.save(state, folder / "model.pth")
        return
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def same_bits(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def comparable(config, hubert_of_inference=False):
    """Returns the fields of a config that every layout stores."""
    fields = json.loads(json.dumps(config.to_dict(), default=str))
    for name in ("acoustic_padding", "dtype", "architectures", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    hubert = fields["semantic_model_config"]
    stored = boson.HUBERT_FIELDS if hubert_of_inference else hubert.keys() - {"dtype"}
    return {**fields, "semantic_model_config": {name: hubert[name] for name in stored}}
