"""Higgs Audio V2: one language model for text and audio that generates speech from text.

>>> import higgs_audio
>>> speech = higgs_audio.HiggsAudio.from_pretrained("nano").generate("Hello there.")
>>> speech.waveform.sample_rate
24000

Public names are imported on first use, so that importing the package takes less than 0.1 s and needs no optional
dependency.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from higgs_audio.audio.waveform import Waveform
    from higgs_audio.auto import AutoProcessor, AutoTokenizer
    from higgs_audio.checkpoint.find import NANO
    from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
    from higgs_audio.config import HiggsAudioConfig
    from higgs_audio.errors import HiggsAudioError
    from higgs_audio.model.model import HiggsAudioForConditionalGeneration, HiggsAudioModel
    from higgs_audio.prompt.processor import HiggsAudioProcessor
    from higgs_audio.prompt.prompt import Prompt, Turn, Voice
    from higgs_audio.speech.result import Speech
    from higgs_audio.speech.tts import HiggsAudio

__version__ = "0.1.0"

# Public name -> the module that defines it.
_MODULES = {
    "NANO": "checkpoint.find",
    "AutoProcessor": "auto",
    "AutoTokenizer": "auto",
    "HiggsAudio": "speech.tts",
    "Speech": "speech.result",
    "Voice": "prompt.prompt",
    "Turn": "prompt.prompt",
    "Prompt": "prompt.prompt",
    "Waveform": "audio.waveform",
    "HiggsAudioConfig": "config",
    "HiggsAudioModel": "model.model",
    "HiggsAudioForConditionalGeneration": "model.model",
    "HiggsAudioProcessor": "prompt.processor",
    "HiggsAudioTokenizer": "codec",
    "HiggsAudioTokenizerConfig": "codec",
    "HiggsAudioError": "errors",
}

__all__ = [
    "NANO",
    "AutoProcessor",
    "AutoTokenizer",
    "HiggsAudio",
    "HiggsAudioConfig",
    "HiggsAudioError",
    "HiggsAudioForConditionalGeneration",
    "HiggsAudioModel",
    "HiggsAudioProcessor",
    "HiggsAudioTokenizer",
    "HiggsAudioTokenizerConfig",
    "Prompt",
    "Speech",
    "Turn",
    "Voice",
    "Waveform",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


import_module(f"{__name__}.auto").install()  # registers our model types with transformers' Auto classes
import_module(f"{__name__}.moved").install()  # resolves module names in pickles of earlier versions
