"""HiggsAudio: text in, speech out. Where processor, engine and audio tokenizer meet; glue only."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from higgs_audio import checkpoint
from higgs_audio.audio.files import read
from higgs_audio.audio.waveform import Waveform, from_array
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.device import read_device
from higgs_audio.engine import Engine
from higgs_audio.errors import AudioError, CheckpointError, HiggsAudioError, OptionError, TextError, VoiceError, nearest
from higgs_audio.model import quantize
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.model.offload import offload_text as keep_text_home
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.decode_queue import DecodeQueue
from higgs_audio.speech.request import RequestBuilder, SpeechRequest, silence_codes
from higgs_audio.speech.result import LOW_LATENCY_FRAMES, Chunk, Speech, SpeechBuilder
from higgs_audio.speech.stream import UTTERANCES_AHEAD, SpeechStream, stream_many, stream_speech
from higgs_audio.speech.voices import read_voices
from higgs_audio.text.written import check_speakable

MAX_REFERENCE_SECONDS = 30.0  # a longer one makes every step slower and the voice no better
NUM_REFERENCES = 64  # recordings whose codes are kept: a voice is encoded once, however often it comes


class HiggsAudio:
    """A checkpoint that speaks.

    >>> tts = HiggsAudio.from_pretrained("nano")  # doctest: +SKIP
    >>> speech = tts.generate("The sun rises in the east.", voice="ava", seed=1)  # doctest: +SKIP
    >>> len(speech.waveform.samples) == 960 * speech.codes.shape[1]  # doctest: +SKIP
    True

    Args:
        model: the language model, in eval mode.
        processor: with its audio tokenizer.
        voices: name -> {"profile": text that the model knows the voice by, "description": for people}; the first is
            the default. Without any, the model chooses a voice.

    Raises:
        OptionError: something else. CheckpointError: a processor without audio tokenizer.
    """

    def __init__(
        self,
        model: HiggsAudioForConditionalGeneration,
        processor: HiggsAudioProcessor,
        voices: dict[str, dict[str, str]] | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) or not isinstance(processor, HiggsAudioProcessor):
            given = f"{type(model).__name__} and {type(processor).__name__}"
            raise OptionError(f"HiggsAudio got {given}; give a HiggsAudioForConditionalGeneration and its processor")
        if not isinstance(voices, (Mapping, NoneType)) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("profile"), str) for entry in (voices or {}).values()
        ):
            raise OptionError(f'voices={voices!r:.60}; give None, or a dict like {{"ava": {{"profile": "Ava"}}}}')
        if processor.audio_tokenizer is None:
            raise CheckpointError("the processor has no audio tokenizer: load it from a checkpoint that has one")
        self.model = model
        self.processor = processor
        self._profiles = voices or {}
        self._writer, self._desk = RequestBuilder(model, processor), DecodeQueue(processor.audio_tokenizer)
        self._engine: Engine | None = None
        self._references: OrderedDict[bytes, NDArray[np.int64]] = OrderedDict()  # of recordings, by their hash
        self._making, self._encoding = threading.Lock(), threading.Lock()

    @property
    def engine(self) -> Engine:
        """What runs its requests, made when something is first said; put another here for other limits.

        Where the weights of the model are changed afterwards, `engine.forget()`.
        """
        with self._making:  # two threads that speak first must not have one each
            if self._engine is None:
                self._engine = Engine(self.model, silent=silence_codes(self.codec))
            return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "nano",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        codec_device: str | torch.device | None = None,
        weights: str | None = None,
        offload_text: bool = False,
    ) -> "HiggsAudio":
        """Loads a checkpoint. What a small machine can do with the last three is in docs/small-machines.md.

        Args:
            name: as in `checkpoint.resolve`: "nano", a folder, or a hub repository.
            device: "cpu", "cuda", ...; when None a GPU if torch finds one.
            dtype: of the language model; when None float32 on a CPU, where it is faster than bfloat16, and bfloat16
                elsewhere. The audio tokenizer is always float32.
            codec_device: of the audio tokenizer; when None that of the language model.
            weights: "int8" or "nf4" (4 bits) quantises the matrices of the decoder layers while they are loaded.
            offload_text: leaves the weights that only text needs in host memory. Changes nothing on a CPU, where
                they are.

        Raises:
            CheckpointError: no such checkpoint, or files that do not fit.
            OptionError: no such device or weights; weights for a checkpoint that was saved quantised; a model whose
                text weights audio needs too.
            MissingExtraError: torchao (int8) or bitsandbytes (nf4) is not installed.
        """
        place = read_device(device)
        codec_place = place if codec_device is None else read_device(codec_device, "codec_device")
        folder = checkpoint.resolve(name)
        dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        model = HiggsAudioForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, **_weight_options(folder, weights, dtype)
        )
        if offload_text and place.type != "cpu":
            keep_text_home(model, place)
        else:
            model.to(place)
        return cls(model, _load_processor(folder, codec_place), read_voices(folder))

    @property
    def codec(self) -> HiggsAudioTokenizer:
        """The audio tokenizer."""
        assert self.processor.audio_tokenizer is not None
        return self.processor.audio_tokenizer

    @property
    def sample_rate(self) -> int:
        """Of everything it says, in Hz: 24000."""
        return self.processor.sampling_rate

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices that the checkpoint brings; the first is the default."""
        return tuple(self._profiles)

    def voice(self, source: str | Path | bytes | Waveform, transcript: str | None = None) -> Voice:
        """A voice by name, or that of a recording.

        Args:
            source: one of `voices`; or a recording of at most 30 seconds, of any format, rate and number of channels,
                as a path, the bytes of a file, or a `Waveform`.
            transcript: what is said in the recording, word for word.

        Raises:
            VoiceError: no such voice, a recording without transcript, or a name with one.
            AudioError: a recording that is missing, unreadable, empty, shorter than 5 ms or longer than 30 s.
            TextError: a transcript with nothing speakable, or with a special token in it.
        """
        if isinstance(source, str) and not _is_recording(source, self.voices):
            if transcript is not None:
                raise VoiceError(f"{source!r} names a voice, which takes no transcript; leave it out, or give a path")
            return self._named(source)
        if transcript is None:
            raise VoiceError("a recording needs its transcript: pass what is said in it, word for word, as transcript=")
        said = check_speakable(transcript).strip()
        return Voice(transcript=said, codes=self._encode(_read_reference(source)))

    def _encode(self, reference: Waveform) -> NDArray[np.int64]:
        """The codes `[K, F]` of a recording."""
        key = hashlib.sha256(reference.samples.tobytes() + str(reference.sample_rate).encode()).digest()
        with self._encoding:
            if key not in self._references:
                self._references[key] = self.processor.encode_audio(reference)
            self._references.move_to_end(key)
            while len(self._references) > NUM_REFERENCES:
                self._references.popitem(last=False)
            return self._references[key].copy()  # whoever changes them changes their own

    def generate(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        seed: int | None = None,
        max_seconds: float | None = None,
        scene: str | None = None,
        progress: Callable[[float], None] | None = None,
        **sampling: Any,
    ) -> Speech:
        """Speaks a text of any length: the concatenation of `stream`.

        Args:
            text: what to say.
            voice: a name of `voices`, or a `Voice` that `voice()` made; the default voice when None.
            seed: equal seeds give equal sound on one machine; when None no two calls are equal.
            max_seconds: at most so much sound in all. Beside that, no utterance may last longer than 1 second and
                0.12 for each phone, about twice of what it should.
            scene: where the speech is recorded, in words, for models that know scenes.
            progress: called with the seconds of sound made so far.
            **sampling: `temperature`, `top_k`, `top_p` and the other fields of `SamplingOptions`; where left out, the
                checkpoint's own.

        Raises:
            TextError: a text that is empty, has nothing speakable, or holds a special token.
            VoiceError: no such voice.
            OptionError: an option that does not exist, or a value outside its range.
            PromptError: a scene with a special token in it. CodesError: a voice with impossible codes.
        """
        request = self.request(text, voice, {"seed": seed, "max_seconds": max_seconds, "scene": scene, **sampling})
        if progress is not None and not callable(progress):
            raise OptionError(f"progress={progress!r:.60}; give a function of seconds, or None")
        said = SpeechBuilder(self.sample_rate)
        for chunk in stream_speech(self._recital(request, ahead=UTTERANCES_AHEAD)):
            said.add(chunk)
            if progress is not None:
                progress(said.seconds)
        return said.speech()

    def generate_batch(
        self,
        texts: Sequence[str],
        voice: Voice | str | None = None,
        *,
        seed: int | None = None,
        max_seconds: float | None = None,
        scene: str | None = None,
        **sampling: Any,
    ) -> list[Speech]:
        """Speaks several texts at once: each as `generate` would with the same arguments, in a fraction of the time.

        Raises what `generate` raises, for the first text found with an error; before anything is said where it can be
        told.
        """
        if isinstance(texts, str):
            raise TextError(f"texts={texts!r:.60} is one text; give a list of them, or call generate")
        requests = [
            self.request(text, voice, {"seed": seed, "max_seconds": max_seconds, "scene": scene, **sampling})
            for text in texts
        ]
        spoken: dict[int, Speech] = {}
        with closing(self.generate_as_completed(requests)) as results:
            for number, result in results:
                if isinstance(result, HiggsAudioError):
                    raise result
                spoken[number] = result
        return [spoken[number] for number in range(len(requests))]

    def generate_as_completed(
        self, requests: Iterable[SpeechRequest]
    ) -> Generator[tuple[int, Speech | HiggsAudioError], None, None]:
        """Speaks any number of requests, several at once: the number of each and its speech or error, as they are done.

        Args:
            requests: of `request`; taken as room is made. Closing the iterator ends the work.
        """
        return stream_many(
            requests, lambda one: self._recital(one, ahead=UTTERANCES_AHEAD, soon=False), self.sample_rate
        )

    async def generate_async(self, text: str, voice: Voice | str | None = None, **options: Any) -> Speech:
        """`generate` for asyncio; what is asked for at once is spoken together.

        A task that is cancelled comes back at once; its text is spoken to the end, unheard. `stream_async` stops.
        """
        return await asyncio.to_thread(self.generate, text, voice, **options)

    async def stream_async(
        self, text: str, voice: Voice | str | None = None, **options: Any
    ) -> AsyncIterator[Waveform]:
        """`stream` for asyncio; breaking off, or cancelling the task, ends the work."""
        low_latency = options.pop("low_latency", False)
        request = await asyncio.to_thread(self.request, text, voice, options)
        await asyncio.to_thread(lambda: self.engine)  # made when something is first said
        recital = self._recital(request, look_ahead=_look_ahead(low_latency))  # which asks in the first thread below
        pending: asyncio.Future[Chunk | None] | None = None
        try:
            while True:
                pending = asyncio.ensure_future(asyncio.to_thread(next, recital, None))
                chunk = await asyncio.shield(pending)
                if chunk is None:
                    return
                if len(chunk.samples):
                    yield Waveform(chunk.samples, self.sample_rate)
        finally:
            recital.stop()  # a thread may be in it still, and nobody can close it before it is out
            if pending is not None:
                await asyncio.wait([pending])
                if not pending.cancelled():
                    pending.exception()  # told already, or nobody waits for it any more
            await asyncio.to_thread(recital.close)

    def stream(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        seed: int | None = None,
        max_seconds: float | None = None,
        scene: str | None = None,
        low_latency: bool = False,
        **sampling: Any,
    ) -> Generator[Waveform, None, None]:
        """Speaks a text in chunks, each as soon as it is certain. Arguments and errors are those of `generate`.

        Everything is checked before the first chunk is asked for; closing the iterator ends the work.

        Args:
            low_latency: each chunk comes some frames earlier, before all that it depends on is known: the sound is
                nearly that of `generate`, and no longer the same. docs/measurements.md has how much sooner and how
                near.
        """
        request = self.request(text, voice, {"seed": seed, "max_seconds": max_seconds, "scene": scene, **sampling})
        return self._waveforms(request, _look_ahead(low_latency))

    def _waveforms(self, request: SpeechRequest, look_ahead: int | None) -> Generator[Waveform, None, None]:
        for chunk in stream_speech(self._recital(request, look_ahead=look_ahead)):
            if len(chunk.samples):
                yield Waveform(chunk.samples, self.sample_rate)

    def _recital(self, request: SpeechRequest, **options: Any) -> SpeechStream:
        if self._desk.codec is not self.codec:  # the processor has been given another
            self._desk = DecodeQueue(self.codec)
        return SpeechStream(request, self.engine, self._writer, self._desk, **options)

    # What a call asks for.

    def request(self, text: str, voice: Voice | str | None, options: Mapping[str, Any]) -> SpeechRequest:
        """The checked request of a `generate` call with these arguments, for `generate_as_completed`."""
        chosen = self._default() if voice is None else voice if isinstance(voice, Voice) else self._named(str(voice))
        return self._writer.check(text, chosen, options)

    def _named(self, name: str) -> Voice:
        if name not in self._profiles:
            raise VoiceError(
                f"no voice {name!r}; {nearest(name, self.voices)}. A recording and its transcript make another: "
                "voice(path, transcript)"
            )
        return Voice(name=name, profile=self._profiles[name]["profile"])

    def _default(self) -> Voice | None:
        return self._named(self.voices[0]) if self.voices else None


def _look_ahead(low_latency: bool) -> int | None:
    """Frames that a sample waits for; all that it depends on when None. Raises OptionError unless it is a bool."""
    if not isinstance(low_latency, bool):
        raise OptionError(f"low_latency={low_latency!r}; allowed: True or False")
    return LOW_LATENCY_FRAMES if low_latency else None


def _read_reference(source: str | Path | bytes | Waveform) -> Waveform:
    """The recording of a voice, not longer than it may be."""
    if not isinstance(source, Waveform):
        return read(source, max_seconds=MAX_REFERENCE_SECONDS)
    if source.seconds > MAX_REFERENCE_SECONDS:
        raise AudioError(f"the recording lasts {source.seconds:.1f} seconds; give at most {MAX_REFERENCE_SECONDS:g}")
    return from_array(source.samples, source.sample_rate)


def _is_recording(source: str, voices: tuple[str, ...]) -> bool:
    """Whether a string is a path, and not the name of a voice (well or badly spelled)."""
    path = Path(source)
    return source not in voices and (len(path.parts) > 1 or bool(path.suffix) or path.is_file())


def _weight_options(folder: Path, weights: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What loading has to know of quantised weights: those asked for, or those the checkpoint was saved with."""
    saved = quantize.saved_method(folder)
    if weights is not None and saved is not None:
        raise OptionError(f"weights={weights!r}: {folder} was saved quantised by {saved}; leave weights out")
    if weights is None and saved is None:
        return {}
    # Quantised in host memory, then moved: transformers would otherwise pick a GPU, with or without room for it.
    asked = {} if weights is None else {"quantization_config": quantize.quantization_config(weights, dtype)}
    return {**asked, "device_map": {"": "cpu"}}


def load_codec(name: str | Path, device: str | torch.device | None = None) -> HiggsAudioTokenizer:
    """The audio tokenizer of a checkpoint, or one in a folder or repository of its own.

    Args:
        name, device: as in `HiggsAudio.from_pretrained`.

    Raises:
        CheckpointError: no such checkpoint, or files that do not fit.
        OptionError: no such device.
    """
    return HiggsAudioTokenizer.from_pretrained(name, device_map=read_device(device))


def _load_processor(folder: Path, place: torch.device) -> HiggsAudioProcessor:
    try:
        return HiggsAudioProcessor.from_pretrained(folder, device_map=place)
    except HiggsAudioError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer or processor files of {folder} do not load: {error}") from error
