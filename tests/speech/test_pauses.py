"""Tests of the pauses between utterances, on nano and on signals."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from higgs_audio.cli import main
from higgs_audio.errors import OptionError, TextError
from higgs_audio.speech.silence import leading_silence, silent_level, trailing_silence
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.text import phonemize
from higgs_audio.text.pauses import Pauses, read_pauses
from higgs_audio.text.utterances import Utterance

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gaps

TWO = "The sun was shining on the quiet lake. Many people came to sit on the green grass."
RATE = 24_000


@pytest.fixture(scope="module")
def nano():
    return HiggsAudio.from_pretrained("nano")


def join(chunks):
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.mark.parametrize(
    ("separator", "kind", "low", "high"),
    [(" ", "sentence", 0.3, 0.5), ("\n\n", "paragraph", 0.6, 1.0)],
)
def test_a_pause_is_heard_as_long_as_its_boundary_asks(nano, separator, kind, low, high):
    text = separator.join(part.strip() + "." for part in TWO.split(".") if part)
    for seed in range(3):
        request = nano.request(text, "ava", {"seed": seed})
        assert request.pauses == (getattr(Pauses(), kind),)
        (gap,) = gaps.measure(nano, text, "ava", seed)
        assert low <= gap <= high


def test_the_stream_and_the_whole_have_the_same_pauses(nano):
    pauses = {"sentence": 1.0}
    whole = nano.generate(TWO, "ava", seed=1, pauses=pauses)
    assert np.array_equal(join(nano.stream(TWO, "ava", seed=1, pauses=pauses)), whole.waveform.samples)
    assert len(whole.waveform.samples) == 960 * whole.codes.shape[1]
    (batched,) = nano.generate_batch([TWO], "ava", seed=1, pauses=pauses)
    np.testing.assert_allclose(batched.waveform.samples, whole.waveform.samples, atol=1e-4)


def test_a_longer_pause_adds_whole_frames_of_silence_and_changes_nothing_else(nano):
    short, long = (nano.generate(TWO, "ava", seed=1, pauses={"sentence": seconds}) for seconds in (0.0, 2.0))
    added = long.codes.shape[1] - short.codes.shape[1]
    assert 40 <= added <= 50
    start = next(n for n in range(short.codes.shape[1]) if not np.array_equal(long.codes[:, n], short.codes[:, n]))
    assert np.array_equal(np.delete(long.codes, range(start, start + added), axis=1), short.codes)
    assert not long.waveform.samples[960 * start : 960 * (start + added)].any()
    decoded = nano.codec.decode(torch.from_numpy(long.codes[None, :, start : start + added])).audio_values
    assert float(decoded.detach().abs().max()) < 0.01, "the codes of the pause are silence too"


def test_the_limit_on_the_duration_includes_pauses(endless):
    for seconds in (4.0, 7.0, 8.0):
        speech = endless.generate(TWO, seed=1, max_seconds=seconds, pauses={"sentence": 3.0})
        assert speech.seconds <= seconds


def test_the_first_sound_does_not_wait_for_pauses(endless):
    chunks = [next(endless.stream(TWO, seed=1, pauses={"sentence": seconds})).samples for seconds in (0.0, 5.0)]
    assert np.array_equal(*chunks)


def test_a_written_break_replaces_the_pause_of_its_boundary():
    pauses = Pauses(sentence=0.5)
    assert [pauses.after(Utterance("x", *rest)) for rest in (("sentence",), ("sentence", 2.0), ("clause",))] == [
        0.5,
        2,
        0,
    ]


def test_silence_is_measured_from_the_first_and_last_loud_window():
    loud = 0.1 * np.ones(RATE // 10, np.float32)
    quiet = 0.001 * np.ones(RATE, np.float32)
    utterance = np.concatenate([quiet[: RATE // 4], loud, quiet[: RATE // 2]])
    assert trailing_silence(utterance, RATE) == pytest.approx(0.5)
    assert leading_silence(utterance, silent_level(utterance, RATE), RATE) == pytest.approx(0.25)
    assert trailing_silence(np.zeros(0, np.float32), RATE) == trailing_silence(np.zeros(5000, np.float32), RATE) == 0
    assert leading_silence(np.zeros(960, np.float32), 0.1, RATE) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("pauses", "message"),
    [
        ({"paragraf": 1.0}, "did you mean 'paragraph'"),
        ({"sentence": -0.1}, "0 to 10 seconds"),
        ({"sentence": 10.5}, "0 to 10 seconds"),
        ({"sentence": float("nan")}, "0 to 10 seconds"),
        ({"sentence": "1"}, "0 to 10 seconds"),
        ({"sentence": True}, "0 to 10 seconds"),
        ({"sentence": None}, "0 to 10 seconds"),
        (Pauses(item=99.0), "0 to 10 seconds"),
        (0.5, "give Pauses, or a mapping"),
        ([0.5], "give Pauses, or a mapping"),
    ],
)
def test_pauses_that_do_not_exist_or_are_out_of_range_are_an_option_error(tts, pauses, message):
    with pytest.raises(OptionError, match=message):
        tts.generate("Hello.", pauses=pauses)


def test_pauses_are_read_from_a_mapping_of_some_or_from_all():
    assert read_pauses({"item": 1}) == Pauses(item=1) == read_pauses(Pauses(item=1))
    assert read_pauses(None) == Pauses()


def test_a_text_of_markup_alone_is_a_text_error(tts):
    with pytest.raises(TextError, match="nothing that this model speaks"):
        tts.generate("<script>word</script>")


def test_an_entity_cannot_hide_a_special_token(tts):
    with pytest.raises(TextError, match=r"special token <\|eot_id\|>"):
        tts.generate("Hello &lt;|eot_id|&gt; <b>there</b>.")


def test_the_command_line_takes_pauses_by_kind(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(
            [
                "speak",
                TWO,
                "--model",
                str(tiny_checkpoint),
                "--pause",
                "sentence=1",
                "--pause",
                "item=0.2",
                "--seed",
                "1",
            ]
        )
    assert not exit.value.code
    for pair, message in (
        ("sentence", "like paragraph=1.2"),
        ("sentence=x", "like paragraph=1.2"),
        ("x=1", "no field 'x'"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["speak", TWO, "--model", str(tiny_checkpoint), "--pause", pair])
        assert exit.value.code and message in capsys.readouterr().err


def test_a_sound_that_the_model_does_not_have_is_left_out_with_one_warning(tts):
    with pytest.warns(UserWarning, match=r"has no sound \[laugh\]") as warned:
        request = tts.request("[laugh] Well [laugh] yes. [laugh]", None, {})
    assert len([warning for warning in warned if "has no sound" in str(warning.message)]) == 1
    assert request.utterances == ("Well yes.",)
    with pytest.warns(UserWarning, match="no sound"), pytest.raises(TextError, match="nothing that this model speaks"):
        tts.request("[cough]", None, {})


def test_words_of_other_scripts_are_left_out_with_one_warning(tts):
    with pytest.warns(UserWarning, match="left out: мир, 世界, 你好$") as warned:
        request = tts.request("Hello мир and 世界. 世界 Good мир bye, naïve π.\n\n你好。", None, {})
    assert len([warning for warning in warned if "left out" in str(warning.message)]) == 1
    assert " ".join(request.utterances) == "Hello and. Good bye, naïve π."
    with pytest.warns(UserWarning, match="left out"), pytest.raises(TextError, match="nothing that this model speaks"):
        tts.request("Привет, 世界", None, {})


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("She left (at last).", "She left, at last."),
        ("She left (at last), by train.", "She left, at last, by train."),
        ("(Yes) he said.", "Yes, he said."),
        ("Call (212) 555-0187.", "Call 212 555-0187."),
        ("f(x) is small.", "f x is small."),
    ],
)
def test_round_brackets_around_words_are_pauses(nano, text, phonemes):
    (utterance,) = nano.request(text, "ava", {}).utterances
    assert phonemize(utterance) == phonemize(phonemes)
