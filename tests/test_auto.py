"""Tests of Auto classes: ours load every layout, and those of transformers resolve our model types in any order of
imports.
"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from higgs_audio import NANO, AutoProcessor, AutoTokenizer
from higgs_audio.auto import is_higgs_audio
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.errors import CheckpointError
from higgs_audio.prompt.config import PUBLISHED_CODEC
from higgs_audio.prompt.processor import HiggsAudioProcessor

CLASSES = """
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
folder = sys.argv[1]
print(type(AutoConfig.from_pretrained(folder)).__name__, type(AutoConfig.from_pretrained(folder + "/codec")).__name__)
print(type(AutoModel.from_pretrained(folder)).__name__, type(AutoModel.from_pretrained(folder + "/codec")).__name__)
print(type(AutoModelForTextToWaveform.from_pretrained(folder)).__name__)
print(type(AutoProcessor.from_pretrained(folder, device_map="cpu", torch_dtype="auto")).__name__)
print(type(AutoTokenizer.from_pretrained(folder)).__name__, CONFIG_MAPPING["higgs_audio_v2"].__module__)
print([finder for finder in sys.meta_path if type(finder).__module__ == "higgs_audio.auto"])
"""
EXPECTED = f"""\
HiggsAudioConfig HiggsAudioTokenizerConfig
HiggsAudioForConditionalGeneration HiggsAudioTokenizer
HiggsAudioForConditionalGeneration
HiggsAudioProcessor
{PreTrainedTokenizerFast.__name__} transformers.models.higgs_audio_v2.configuration_higgs_audio_v2
[]
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import higgs_audio, transformers",
        "from transformers import AutoModel, AutoProcessor; import higgs_audio",
        # Imports the Auto classes of transformers while our package is half imported.
        "from higgs_audio.codec import HiggsAudioTokenizer",
    ],
)
def test_auto_classes_of_transformers_resolve_our_types(tiny_checkpoint, imports):
    code = f"import sys; {imports}\n{CLASSES}"
    result = subprocess.run([sys.executable, "-c", code, str(tiny_checkpoint)], capture_output=True, text=True)
    assert result.stdout == EXPECTED, result.stderr[-1000:]


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, higgs_audio; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


# Layouts.


@pytest.fixture
def layouts(tiny_checkpoint, tmp_path):
    """Returns the text tokenizer of the tiny checkpoint in each layout, with an audio tokenizer in another folder or
    none."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)
    made = {name: tmp_path / name for name in ("original", "transformers")}
    for name, folder in made.items():
        tokenizer.save_pretrained(folder)
        kind = {"original": "higgs_audio", "transformers": "higgs_audio_v2"}[name]
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    published = {
        "audio_stream_bos_id": 1024,
        "audio_tokenizer": {"audio_tokenizer_name_or_path": str(tiny_checkpoint / "codec")},
        "feature_extractor": {"sampling_rate": 24000},
        "processor_class": "HiggsAudioV2Processor",
    }
    (made["transformers"] / "processor_config.json").write_text(json.dumps(published))
    return {"ours": tiny_checkpoint, "nano": "nano", **made}


@pytest.mark.parametrize("layout", ["ours", "nano", "original", "transformers"])
def test_auto_classes_load_our_processor_and_fast_tokenizer_from_every_layout(layouts, layout):
    assert is_higgs_audio(layouts[layout])
    processor = AutoProcessor.from_pretrained(layouts[layout], device_map="cpu", torch_dtype="auto")
    assert isinstance(processor, HiggsAudioProcessor)
    assert isinstance(AutoTokenizer.from_pretrained(layouts[layout]), PreTrainedTokenizerFast)
    if layout != "original":
        assert isinstance(processor.audio_tokenizer, HiggsAudioTokenizer)


def test_the_original_layout_loads_its_audio_tokenizer_on_first_use(layouts, tiny_checkpoint):
    processor = AutoProcessor.from_pretrained(layouts["original"])
    conversation = [{"role": "user", "content": [{"type": "audio", "audio": torch.zeros(24000)}]}]
    assert processor.apply_chat_template([{"role": "user", "content": "Hi"}]).input_ids.shape[0] == 1
    with pytest.raises(CheckpointError, match=f"{PUBLISHED_CODEC}.*audio_tokenizer="):
        processor.apply_chat_template(conversation)
    for given in (tiny_checkpoint / "codec", HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")):
        processor = AutoProcessor.from_pretrained(layouts["original"], audio_tokenizer=given, device_map="cpu")
        assert processor.apply_chat_template(conversation).audio_input_ids.shape == (1, 34, 8)


def test_other_models_are_loaded_by_transformers(tmp_path):
    """From a Llama folder with only a tokenizer, AutoProcessor of transformers returns the tokenizer."""
    PreTrainedTokenizerFast.from_pretrained(NANO).save_pretrained(tmp_path)
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    assert not is_higgs_audio(tmp_path)
    for kind in (AutoProcessor, AutoTokenizer):
        assert isinstance(kind.from_pretrained(tmp_path), PreTrainedTokenizerFast)


def test_an_unreachable_repository_raises_the_error_of_transformers():
    with pytest.raises(OSError, match=r"huggingface\.co"):
        AutoTokenizer.from_pretrained("higgs-audio-tests/no-such-repository")
