"""Batch generation: reads a JSON Lines list of texts and writes a folder of audio files; resumable."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_audio.audio.files import write
from higgs_audio.errors import HiggsAudioError, OptionError, nearest
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.request import OPTION_NAMES, SpeechRequest
from higgs_audio.speech.result import Speech
from higgs_audio.speech.tts import HiggsAudio

REPORT = "report.jsonl"
_ID = re.compile(r"[\w][\w.-]{0,199}")
KEYS = ("id", "text", "voice", "transcript", *OPTION_NAMES)


@dataclass(frozen=True)
class Job:
    """A line of the list: the name of the audio file, and the arguments of generation."""

    id: str
    fields: Mapping[str, Any]


def read_jobs(path: Path) -> list[Job]:
    """Reads a list of JSON objects, one per line.

    Their keys are `text` and optionally `id` (the name of the file; default: the line number), `voice` (a name, or the
    path of a recording with its `transcript`), `seed`, `max_seconds`, `scene`, `pauses` and the fields of
    `SamplingOptions`.

    Raises:
        OptionError: the list cannot be read or is empty, a line is not such an object, or an id occurs twice or is not
            a valid file name.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON strings may contain U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{str(path)!r} cannot be read: {error}; give a UTF-8 file with a JSON object on each line"
        ) from error
    jobs = [_parse_job(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not jobs:
        raise OptionError(f'{str(path)!r} is empty; give lines like {{"id": "one", "text": "Hello."}}')
    most_common, count = Counter(job.id for job in jobs).most_common(1)[0]
    if count > 1:
        raise OptionError(f"the id {most_common!r} occurs {count} times; give every text a unique id")
    return jobs


def _parse_job(line: str, number: int) -> Job:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise OptionError(f'line {number} is not JSON: {error}; give an object like {{"text": "Hello."}}') from error
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise OptionError(f'line {number} is {line:.60}; give an object like {{"text": "Hello."}}')
    if unknown := sorted(set(given) - set(KEYS)):
        raise OptionError(f"line {number}: no key {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    name = f"{number:05d}" if given.get("id") is None else str(given["id"])
    if not _ID.fullmatch(name) or len(name.encode()) > 200:  # file systems allow 255 bytes
        raise OptionError(f"line {number}: id {name!r:.60}; use letters, digits, dots, dashes and underscores")
    return Job(name, given)


def missing_jobs(jobs: list[Job], folder: Path, suffix: str = ".wav") -> list[Job]:
    """Returns the jobs whose audio file is missing in `folder`."""
    return [job for job in jobs if not (folder / f"{job.id}{suffix}").exists()]


def generate_all(
    tts: HiggsAudio,
    jobs: list[Job],
    folder: Path,
    suffix: str = ".wav",
    on_done: Callable[[Job, str | None], None] | None = None,
) -> list[Job]:
    """Generates the audio files that `folder` does not have, each atomically, and appends every result to the report.

    Args:
        tts: the model.
        jobs: from `read_jobs`.
        folder: folder of the files `{id}{suffix}` and of report.jsonl; created if missing.
        suffix: extension of the audio files, see `audio.write`.
        on_done: called with each finished job and its error message, None if it succeeded.

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
        if on_done is not None:
            on_done(job, error)
    return failed


def _results(tts: HiggsAudio, jobs: list[Job]) -> Iterator[tuple[Job, Speech | HiggsAudioError]]:
    """Yields each job with its speech or its error, in the order of completion."""
    accepted: list[Job] = []
    invalid: list[tuple[Job, HiggsAudioError]] = []

    def requests() -> Iterator[SpeechRequest]:
        for job in jobs:
            try:
                request = tts.request(*_arguments(tts, job))
            except HiggsAudioError as error:
                invalid.append((job, error))
            else:
                accepted.append(job)
                yield request

    with closing(tts.generate_as_completed(requests())) as results:
        for number, result in results:
            yield accepted[number], result
            yield from invalid
            invalid.clear()
    yield from invalid


def _arguments(tts: HiggsAudio, job: Job) -> tuple[str, Voice | None, dict[str, Any]]:
    """Returns the arguments of `HiggsAudio.request`."""
    voice, transcript = job.fields.get("voice"), job.fields.get("transcript")
    if voice is None and transcript is not None:
        raise OptionError("a transcript requires a recording: give its path as voice")
    options = {name: job.fields[name] for name in OPTION_NAMES if name in job.fields}
    return job.fields["text"], None if voice is None else tts.voice(voice, transcript), options
