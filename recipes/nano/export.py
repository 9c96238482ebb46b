"""Assembles nano: `codec` exports the audio tokenizer, `all` the whole checkpoint.

The audio tokenizer is stored in bfloat16 and computes in float32. Clips must be encoded with the rounded weights, so
export it before `train prepare`.

    python recipes/nano/export.py codec TOKENIZER_DIR OUT_DIR
    python recipes/nano/export.py all LM_DIR CODEC_DIR PROCESSOR_DIR OUT_DIR
    python recipes/nano/export.py average LM_DIR OTHER_LM_DIR SHARE OUT_DIR
    python recipes/nano/export.py deepen TOKENIZER_DIR BLOCKS OUT_DIR
    python recipes/nano/export.py harmonic TOKENIZER_DIR OUT_DIR
    python recipes/nano/export.py lags TOKENIZER_DIR COUNT OUT_DIR

`average` interpolates two language models, with weight SHARE for the first and 1 - SHARE for the second. `deepen` adds
decoder blocks at 100 Hz to the audio tokenizer, initialized as identities. `harmonic` replaces its spectrum head with
an untrained harmonic head, whose filters are initialized with the magnitudes of the spectrum head. `lags` lets the
encoder hear the autocorrelation at COUNT lags, at first with weight 0.
"""

import copy
import json
import shutil
import sys
from pathlib import Path

import torch

from higgs_audio import HiggsAudioForConditionalGeneration
from higgs_audio.codec import HiggsAudioTokenizer

VOICES = {
    "ava": {"profile": "Ava", "description": "American woman, clear and bright"},
    "joe": {"profile": "Joe", "description": "American man, calm"},
    "sally": {"profile": "Sally", "description": "American woman, a synthetic voice of the 2000s"},
    "angus": {"profile": "Angus", "description": "Scottish man, a synthetic voice of the 2000s"},
}
GENERATION = {
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 30,
    "top_p": 0.95,
    "ras_win_len": 7,
    "ras_win_max_num_repeat": 2,
    "text_guidance_scale": 1.5,
    "eos_codebooks": 1,
    "utterance_chars": 110,  # no clip of the training material is longer
}
PROCESSOR_FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")


def export_codec(tokenizer: str, out: str) -> None:
    """Saves the trained audio tokenizer in bfloat16."""
    codec = HiggsAudioTokenizer.from_pretrained(tokenizer)
    codec.to(torch.bfloat16).save_pretrained(out)


def export_all(lm: str, codec: str, processor: str, out: str) -> None:
    """Saves the language model in bfloat16, tokenizer and processor files, voices and generation defaults."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    model = HiggsAudioForConditionalGeneration.from_pretrained(lm, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in PROCESSOR_FILES:
        shutil.copyfile(Path(processor) / name, folder / name)
    shutil.copytree(codec, folder / "codec", dirs_exist_ok=True)
    for name, content in (("voices.json", VOICES), ("generation_config.json", GENERATION)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def export_average(first: str, second: str, share: str, out: str) -> None:
    """Interpolates in float32. Meant for a model before and after further training, whose weights are close."""
    model, other = (HiggsAudioForConditionalGeneration.from_pretrained(p, dtype=torch.float32) for p in (first, second))
    with torch.no_grad():
        for weight, other_weight in zip(model.parameters(), other.parameters(), strict=True):
            weight.lerp_(other_weight, 1 - float(share))
    model.to(torch.bfloat16).save_pretrained(out)


def export_deepened(tokenizer: str, blocks: str, out: str) -> None:
    """Adds decoder blocks that are initialized as identities: their layer scale is 0."""
    codec = HiggsAudioTokenizer.from_pretrained(tokenizer)
    coarse, fine = codec.config.acoustic["decoder_depths"]
    config = copy.deepcopy(codec.config)
    config.acoustic_model_config["decoder_depths"] = [coarse, fine + int(blocks)]
    deeper = HiggsAudioTokenizer(config)
    deeper.load_state_dict(codec.state_dict(), strict=False)
    for block in list(deeper.acoustic_decoder.fine)[fine:]:
        torch.nn.init.zeros_(block.scale)
    deeper.save_pretrained(out)


def export_harmonic(tokenizer: str, out: str) -> None:
    """Initializes the filters of pulses and noise with those of the spectrum head; the noise is quieter by a factor of
    e."""
    codec = HiggsAudioTokenizer.from_pretrained(tokenizer)
    config = copy.deepcopy(codec.config)
    config.acoustic_model_config["decoder_head"] = "harmonic"
    torch.manual_seed(0)
    harmonic = HiggsAudioTokenizer(config)
    old, new = codec.acoustic_decoder.head, harmonic.acoustic_decoder.head.filters
    kept = {name: value for name, value in codec.state_dict().items() if not name.startswith("acoustic_decoder.head.")}
    harmonic.load_state_dict(kept, strict=False)
    bins = old.out_features // 2
    with torch.no_grad():
        for part, log_attenuation in ((0, 0.0), (1, 1.0)):
            new.weight[part * bins : (part + 1) * bins] = old.weight[:bins]
            new.bias[part * bins : (part + 1) * bins] = old.bias[:bins] - log_attenuation
    harmonic.save_pretrained(out)


def export_lags(tokenizer: str, count: str, out: str) -> None:
    """The codes are the same until the weights of the lags are trained."""
    codec = HiggsAudioTokenizer.from_pretrained(tokenizer)
    config = copy.deepcopy(codec.config)
    config.acoustic_model_config["pitch_lags"] = int(count)
    hearing = HiggsAudioTokenizer(config)
    hearing.load_state_dict(codec.state_dict(), strict=False)
    torch.nn.init.zeros_(hearing.acoustic_encoder.embed_lags.weight)
    hearing.save_pretrained(out)


COMMANDS = {
    "codec": export_codec,
    "all": export_all,
    "average": export_average,
    "deepen": export_deepened,
    "harmonic": export_harmonic,
    "lags": export_lags,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
