"""Text processing: checks, normalization, utterances, phonemes.

- check_speakable: text -> the same text, or a TextError if it cannot be spoken
- is_speakable: whether a text contains a letter or digit
- find_special_tokens: the special tokens that a text contains
- normalize: text -> the form that the language model was trained on
- sounds_to_tokens: sound tags such as [laugh] -> tokens of the published checkpoint
- split_utterances: long text -> utterances, which are generated one at a time
- phonemize: English text -> phonemes
- PHONEMES: the characters of `phonemize`
- SOUNDS: the names that sound tags may have
"""

from higgs_audio.text.markup import SOUNDS, check_speakable, find_special_tokens, is_speakable, sounds_to_tokens
from higgs_audio.text.normalization import normalize
from higgs_audio.text.phonemes import PHONEMES, phonemize
from higgs_audio.text.utterances import split_utterances

__all__ = [
    "PHONEMES",
    "SOUNDS",
    "check_speakable",
    "find_special_tokens",
    "is_speakable",
    "normalize",
    "phonemize",
    "sounds_to_tokens",
    "split_utterances",
]
