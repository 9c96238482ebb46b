"""A list of texts to a folder of sounds: several at once, resumable, and one that fails is told and left out."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from higgs_audio.audio.files import write
from higgs_audio.errors import HiggsAudioError, OptionError, nearest
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.request import SpeechRequest
from higgs_audio.speech.result import Speech
from higgs_audio.speech.tts import HiggsAudio

REPORT = "report.jsonl"
_NAME = re.compile(r"[\w][\w.-]{0,199}")
_OPTIONS = ("seed", "max_seconds", "scene", *(option.name for option in fields(SamplingOptions)))
KEYS = ("id", "text", "voice", "transcript", *_OPTIONS)


@dataclass(frozen=True)
class Job:
    """A line of the list: what to say, and as which file."""

    id: str
    fields: Mapping[str, Any]


def read_jobs(path: Path) -> list[Job]:
    """The lines of a list, JSON objects: `text`, and if wanted `id` (the file's name; else the line's number),
    `voice` (a name, or the path of a recording with its `transcript`), `seed`, `max_seconds`, `scene` and the fields of
    `SamplingOptions`.

    Raises:
        OptionError: a list that cannot be read, a line that is no object, or an id twice or unfit for a file's name.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a string in JSON may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{str(path)!r} cannot be read: {error}; give a UTF-8 file with a JSON object on each line"
        ) from error
    jobs = [_job(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not jobs:
        raise OptionError(f'{str(path)!r} is empty; give lines like {{"id": "one", "text": "Hello."}}')
    twice, count = Counter(job.id for job in jobs).most_common(1)[0]
    if count > 1:
        raise OptionError(f"the id {twice!r} is there {count} times; every text needs its own")
    return jobs


def _job(line: str, number: int) -> Job:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise OptionError(f"line {number} is no JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise OptionError(f'line {number} is {line:.60}; give an object like {{"text": "Hello."}}')
    if unknown := sorted(set(given) - set(KEYS)):
        raise OptionError(f"line {number}: no key {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    name = f"{number:05d}" if given.get("id") is None else str(given["id"])
    if not _NAME.fullmatch(name) or len(name.encode()) > 200:  # file systems allow 255 bytes
        raise OptionError(f"line {number}: id {name!r:.60}; give letters, digits, dots, dashes and underscores")
    return Job(name, given)


def missing_jobs(jobs: list[Job], folder: Path, suffix: str = ".wav") -> list[Job]:
    """Those whose sound `folder` does not have."""
    return [job for job in jobs if not (folder / f"{job.id}{suffix}").exists()]


def speak_all(
    tts: HiggsAudio,
    jobs: list[Job],
    folder: Path,
    suffix: str = ".wav",
    told: Callable[[Job, str | None], None] | None = None,
) -> list[Job]:
    """Speaks what `folder` does not have yet; files appear whole, and the report says of each how it went.

    Args:
        tts: who speaks.
        jobs: from `read_jobs`.
        folder: of the files `ID.wav` and of report.jsonl; made where there is none.
        suffix: of the sound files, as `audio.write` knows them.
        told: called with each job that is done and its error, None where there was none.

    Returns:
        The jobs that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for job, result in _results(tts, missing_jobs(jobs, folder, suffix)):
        error = " ".join(str(result).split()) if isinstance(result, HiggsAudioError) else None
        line: dict[str, Any] = {"id": job.id, "error": error}
        if isinstance(result, Speech):
            write(result.waveform, folder / f"{job.id}{suffix}")
            line |= {"seconds": round(result.seconds, 3), "finish_reason": result.finish_reason}
        else:
            failed.append(job)
        with (folder / REPORT).open("a", encoding="utf-8") as report:
            report.write(json.dumps(line, ensure_ascii=False) + "\n")
        if told is not None:
            told(job, error)
    return failed


def _results(tts: HiggsAudio, jobs: list[Job]) -> Iterator[tuple[Job, Speech | HiggsAudioError]]:
    """Each job with its speech or its error, as they are done."""
    accepted: list[Job] = []
    refused: list[tuple[Job, HiggsAudioError]] = []

    def requests() -> Iterator[SpeechRequest]:
        for job in jobs:
            try:
                request = tts.request(*_arguments(tts, job))
            except HiggsAudioError as error:
                refused.append((job, error))
            else:
                accepted.append(job)
                yield request

    with closing(tts.generate_as_completed(requests())) as results:
        for number, result in results:
            yield accepted[number], result
            yield from refused
            refused.clear()
    yield from refused


def _arguments(tts: HiggsAudio, job: Job) -> tuple[str, Voice | None, dict[str, Any]]:
    voice, transcript = job.fields.get("voice"), job.fields.get("transcript")
    if voice is None and transcript is not None:
        raise OptionError("a transcript belongs to a recording: give its path as voice")
    options = {name: job.fields[name] for name in _OPTIONS if name in job.fields}
    return job.fields["text"], None if voice is None else tts.voice(voice, transcript), options
