"""Audio input and output.

- read: an audio file, its bytes or an open file -> Waveform
- write: Waveform -> an audio file
- encode: Waveform -> the bytes of an audio file
- pcm16: Waveform -> 16-bit samples without a header
- from_array: samples of any common type and layout -> Waveform
- resample: Waveform -> Waveform at another sample rate
- Waveform: mono float32 samples and their sample rate
- AudioLimits: limits on recordings from untrusted sources
- FORMATS: names of the formats that `encode` and `write` support
"""

from higgs_audio.audio.files import FORMATS, encode, pcm16, read, write
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.waveform import Waveform, from_array, resample

__all__ = ["FORMATS", "AudioLimits", "Waveform", "encode", "from_array", "pcm16", "read", "resample", "write"]
