"""Writing becomes speakable: normal form, utterances, phonemes, pace."""

from higgs_audio.text.phonemes import PHONEMES, phonemize
from higgs_audio.text.utterances import split_utterances
from higgs_audio.text.written import check_speakable, is_speakable, normalize

__all__ = ["PHONEMES", "check_speakable", "is_speakable", "normalize", "phonemize", "split_utterances"]
