"""The audio tokenizer: waveforms to codes and back. It imports neither text processing nor the language model."""

from higgs_audio.codec.config import HiggsAudioTokenizerConfig
from higgs_audio.codec.model import HiggsAudioTokenizer
from higgs_audio.codec.stream import StreamDecoder, decode_stream, push_many

__all__ = ["HiggsAudioTokenizer", "HiggsAudioTokenizerConfig", "StreamDecoder", "decode_stream", "push_many"]
