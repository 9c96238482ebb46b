"""Sound enters and leaves: waveforms, files, limits, downloads."""

from higgs_audio.audio.files import FORMATS, encode, pcm16, read, write
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.waveform import Waveform, from_array, resample

__all__ = ["FORMATS", "AudioLimits", "Waveform", "encode", "from_array", "pcm16", "read", "resample", "write"]
