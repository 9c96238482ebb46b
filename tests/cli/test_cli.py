"""Tests of the command line: each command on a tiny checkpoint, and one line on stderr for each error."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from higgs_audio import HiggsAudioForConditionalGeneration, __version__
from higgs_audio.checkpoint.weights import open_weights
from higgs_audio.cli.describe import MODEL_PARTS, count_parts
from higgs_audio.cli.main import app, main
from higgs_audio.cli.train import parse_overrides


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Returns a function that runs a command in an empty folder and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def fails(run, tmp_path):
    """Returns a function that runs a command, which must fail with exit code 2, one line on stderr and no new file."""

    def fails(*arguments):
        before = set(tmp_path.rglob("*"))
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("higgs-audio: ")
        assert err.count("\n") == 1
        assert set(tmp_path.rglob("*")) == before
        return err

    return fails


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "me.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 24000).clip(-1, 1), 24000)
    return path


def test_speak_writes_a_file_prints_its_path_and_reports_statistics_on_stderr(run, tiny_checkpoint):
    code, out, err = run("speak", "Hello.", "-o", "hello.wav", "--model", tiny_checkpoint, "--seed", 1)
    assert (code, out) == (0, "hello.wav\n")
    assert "real-time factor" in err
    info = soundfile.info("hello.wav")
    assert (info.samplerate, info.channels) == (24000, 1)
    assert f"{info.duration:.2f} s of audio" in err


def test_speak_streams_raw_samples_into_a_pipe(run, tiny_checkpoint, tmp_path):
    """The samples equal those of the file, and stdout contains nothing else."""
    arguments = ["speak", "Hello.", "--model", tiny_checkpoint, "--seed", "1"]
    command = [sys.executable, "-m", "higgs_audio", *arguments, "--stream"]
    piped = subprocess.run(command, capture_output=True, check=True)
    run(*arguments, "-o", tmp_path / "hello.wav")
    assert np.array_equal(np.frombuffer(piped.stdout, "<i2"), soundfile.read(tmp_path / "hello.wav", dtype="int16")[0])


def test_speak_reports_the_number_of_tries_and_the_transcript(run, fails, tiny_checkpoint):
    """The tiny checkpoint generates noise, so no transcript is correct."""
    code, out, err = run("speak", "Hello.", "-o", "hello.wav", "--model", tiny_checkpoint, "--seed", 1, "--tries", 2)
    assert (code, out) == (0, "hello.wav\n")
    assert "word errors after 2 of 2 tries; transcript:" in err
    for other in (["--tries", 2], ["-o", "hello.wav"]):
        assert "omit one of them" in fails("speak", "Hello.", "--model", tiny_checkpoint, "--stream", *other)
    assert "give it with --stream" in fails("speak", "Hello.", "--model", tiny_checkpoint, "--low-latency")


def test_batch_generates_a_list_reports_errors_and_resumes(run, tiny_checkpoint, recording, tmp_path):
    lines = [
        {"id": "one", "text": "Hello.", "seed": 1},
        {"text": "Good night.", "voice": "joe", "seed": 2, "temperature": 0.5},
        {"id": "me", "text": "It is me.", "voice": str(recording), "transcript": "Noise.", "seed": 3},
        {"id": "bad", "text": "<|eot_id|>"},
        {"id": "worse", "text": "Hello.", "temperature": -1},
    ]
    lines[1]["text"] = "Good\u2028night."  # does not end a line of the list
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    code, _, err = run("batch", "in.jsonl", "-o", "out", "--model", tiny_checkpoint)
    assert code == 2
    assert "2 of 5 texts failed, 'bad' first" in err
    assert sorted(path.name for path in Path("out").iterdir()) == ["00002.wav", "me.wav", "one.wav", "report.jsonl"]
    report = {line["id"]: line for line in map(json.loads, Path("out/report.jsonl").read_text().splitlines())}
    assert "special token" in report["bad"]["error"]
    assert "temperature=-1" in report["worse"]["error"]
    assert report["one"]["seconds"] == pytest.approx(soundfile.info("out/one.wav").duration, abs=1e-3)
    run("speak", "Hello.", "-o", "alone.wav", "--model", tiny_checkpoint, "--seed", 1)
    assert np.abs(soundfile.read("alone.wav")[0] - soundfile.read("out/one.wav")[0]).max() < 2e-4
    before = Path("out/me.wav").read_bytes()
    Path("out/one.wav").unlink()
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines[:3])) + "\n")
    assert run("batch", "in.jsonl", "-o", "out", "--model", tiny_checkpoint)[:2] == (0, "out\n")
    assert Path("out/one.wav").exists()
    assert Path("out/me.wav").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "line 1 is not JSON"),
        ('{"txt": "a"}', "line 1 is"),
        ('{"text": "a", "vioce": "ava"}', "did you mean 'voice'"),
        ('{"text": "a", "id": "../b"}', "id '../b'"),
        ('{"text": "a", "id": "' + 150 * "\u00e9" + '"}', "line 1: id"),
        ('{"text": "a", "id": "b"}\n{"text": "a", "id": "b"}', "'b' occurs 2 times"),
    ],
)
def test_batch_rejects_invalid_lists(fails, tiny_checkpoint, tmp_path, content, message):
    (tmp_path / "in.jsonl").write_text(content)
    assert message in fails("batch", "in.jsonl", "-o", "out", "--model", tiny_checkpoint)
    (tmp_path / "in.jsonl").write_text('{"text": "Hello."}')
    assert "--format 'wave'" in fails("batch", "in.jsonl", "-o", "out", "--format", "wave", "--model", tiny_checkpoint)


def test_speak_reads_its_text_from_stdin_or_a_file(run, tiny_checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("Hello.", encoding="utf-8")
    options = ("--model", str(tiny_checkpoint), "--seed", "1")
    run("speak", "Hello.", "-o", "argument.flac", *options)
    run("speak", "--file", "text.txt", "-o", "file.flac", *options)
    result = CliRunner().invoke(app, ["speak", "-", "-o", "stdin.flac", *options], input="Hello.\n")
    assert result.exit_code == 0
    assert Path("argument.flac").read_bytes() == Path("file.flac").read_bytes() == Path("stdin.flac").read_bytes()


def test_speak_takes_a_voice_by_name_or_recording_and_a_temperature(run, tiny_checkpoint, recording):
    common = ("speak", "Hello.", "--model", tiny_checkpoint, "--seed", 1)
    assert run(*common, "-o", "ava.wav", "--voice", "ava")[0] == 0
    assert run(*common, "-o", "me2.wav", "--voice", recording, "--transcript", "Hello.")[0] == 0
    assert run(*common, "-o", "cold.wav", "--temperature", "0.1")[0] == 0
    assert len({path.read_bytes() for path in map(Path, ("ava.wav", "me2.wav", "cold.wav"))}) == 3


def test_decode_reads_what_encode_writes(run, tiny_checkpoint, recording):
    code, out, _ = run("encode", recording, "-o", "codes.safetensors", "--model", tiny_checkpoint)
    assert (code, out) == (0, "codes.safetensors\n")
    codes = load_file("codes.safetensors")["codes"]
    assert codes.shape == (8, 25)
    assert (codes.min() >= 0) & (codes.max() < 1024)
    code, out, _ = run("decode", "codes.safetensors", "-o", "decoded.wav", "--model", tiny_checkpoint / "codec")
    assert (code, out) == (0, "decoded.wav\n")
    assert soundfile.info("decoded.wav").frames == 25 * 960


def test_info_prints_sizes_codec_tokens_and_voices(run, tiny_checkpoint):
    code, out, err = run("info", tiny_checkpoint)
    assert (code, err) == (0, "")
    for name in (
        "audio feed-forward",
        "text feed-forward",
        "24000 Hz",
        "8 of 1024",
        "<|audio_out_bos|>",
        "ava",
        "native",
    ):
        assert name in out
    assert "other" not in out  # every weight belongs to a part
    assert "audio tokenizer" in run("info", tiny_checkpoint / "codec")[1]


def test_info_counts_all_parameters_of_the_model(tiny_checkpoint):
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    counts = count_parts({name: weight.numel for name, weight in open_weights(tiny_checkpoint).items()}, MODEL_PARTS)
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())
    heads = model.audio_lm_head.weight.numel(), model.text_lm_head.weight.numel()
    assert (counts["audio head"], counts["text head"]) == heads


def test_version_and_help(run):
    assert run("--version") == (0, f"{__version__}\n", "")
    code, out, _ = run("train", "--help")
    assert code == 0
    for verb in ("lm", "tokenizer", "teacher", "prepare"):
        assert verb in out


def test_speak_rejects_unspeakable_texts(fails, tiny_checkpoint):
    model = ("--model", tiny_checkpoint)
    assert "letter or digit" in fails("speak", " ", *model)
    assert "<|eot_id|>" in fails("speak", "Hello <|eot_id|>", *model)
    assert "once" in fails("speak", *model)
    assert "once" in fails("speak", "Hello.", "--file", "x.txt", *model)
    assert "cannot be read" in fails("speak", "--file", "nowhere.txt", *model)


def test_speak_names_the_invalid_model_voice_or_option(fails, tiny_checkpoint, recording):
    model = ("--model", tiny_checkpoint)
    assert "did you mean 'nano'" in fails("speak", "Hello.", "--model", "nanno")
    assert "did you mean 'ava'" in fails("speak", "Hello.", "--voice", "avaa", *model)
    assert "transcript" in fails("speak", "Hello.", "--voice", recording, *model)
    assert "transcript" in fails("speak", "Hello.", "--transcript", "Hello.", *model)
    assert "nowhere.wav" in fails("speak", "Hello.", "--voice", "nowhere.wav", "--transcript", "Hi.", *model)
    assert "temperature=-1.0" in fails("speak", "Hello.", "--temperature", "-1", *model)
    assert "toaster" in fails("speak", "Hello.", "--device", "toaster", *model)


def test_an_output_that_cannot_be_written_is_rejected_before_the_model_is_loaded(fails, tmp_path):
    """The name of the model is also invalid, but the error is about the output."""
    (tmp_path / "folder").mkdir()
    model = ("--model", "nanno")
    assert "known format" in fails("speak", "Hello.", "-o", "hello.xyz", *model)
    assert "is a folder" in fails("speak", "Hello.", "-o", "folder", *model)
    assert "does not exist" in fails("speak", "Hello.", "-o", "nowhere/hello.wav", *model)
    assert "safetensors" in fails("encode", "me.wav", "-o", "codes.wav", *model)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not safetensors",
        {"sound": np.zeros((8, 5), np.int16)},
        {"codes": np.zeros(5, np.int16)},
        {"codes": np.zeros((9, 5), np.int16)},
        {"codes": np.zeros((8, 0), np.int16)},
        {"codes": np.zeros((8, 5), np.float32)},
        {"codes": np.full((8, 5), 1024, np.int16)},
        {"codes": np.full((8, 5), -1, np.int64)},
    ],
)
def test_decode_rejects_files_that_are_not_codes(fails, tiny_checkpoint, tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x.safetensors").write_bytes(content)
    elif content is not None:
        save_file(content, tmp_path / "x.safetensors")
    assert "x.safetensors" in fails("decode", "x.safetensors", "-o", "x.wav", "--model", tiny_checkpoint)


def test_decode_rejects_codes_of_other_rates(fails, tiny_checkpoint, tmp_path):
    codes = {"codes": np.zeros((8, 5), np.int16)}
    save_file(codes, tmp_path / "x.safetensors", metadata={"sample_rate": "16000"})
    assert "16000" in fails("decode", "x.safetensors", "-o", "x.wav", "--model", tiny_checkpoint)


def test_encode_rejects_files_that_are_not_recordings(fails, tiny_checkpoint, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "short.wav", np.zeros(118), 24000)
    for name, message in {"nowhere.wav": "nowhere.wav", "bad.wav": "bad.wav", "short.wav": "118"}.items():
        assert message in fails("encode", name, "-o", "x.safetensors", "--model", tiny_checkpoint)


@pytest.mark.parametrize("verb", ["lm", "tokenizer", "teacher", "prepare"])
def test_training_rejects_invalid_recipes(fails, tmp_path, verb):
    assert "nowhere.yaml" in fails("train", verb, "nowhere.yaml")
    (tmp_path / "recipe.yaml").write_text("data: clips\noutptu: runs\n", encoding="utf-8")
    assert "did you mean 'output'" in fails("train", verb, "recipe.yaml")
    assert "KEY=VALUE" in fails("train", verb, "recipe.yaml", "--set", "seed")


def test_overrides_are_parsed_as_yaml():
    given = ["num_steps=20", "peak_rate=1.0e-3", "output=runs/x", "hubert={num_hidden_layers: 2}", "name=a=b"]
    assert parse_overrides(given) == {
        "num_steps": 20,
        "peak_rate": 1e-3,
        "output": "runs/x",
        "hubert": {"num_hidden_layers": 2},
        "name": "a=b",
    }


def test_the_installed_command_shows_no_traceback(tmp_path):
    code = "from higgs_audio.cli.main import main; main()"
    command = [sys.executable, "-c", code, "speak", "Hello.", "--model", "nanno"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("higgs-audio: no model 'nanno'")
    assert "Traceback" not in result.stderr


def test_an_output_that_cannot_be_written_is_noticed_before_any_speech_is_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.jsonl").write_text('{"text": "Hello."}\n')
    monkeypatch.chdir(tmp_path)
    commands = {
        ("speak", "Hello.", "-o", "/dev/null/x.wav"): "does not exist|no file can be written",
        ("speak", "Hello.", "-o", "/proc/x.wav"): "no file can be written in '/proc'",
        ("batch", "texts.jsonl", "-o", "/dev/null/out"): "cannot be created",
        ("batch", "texts.jsonl", "-o", "/proc"): "no file can be written in '/proc'",
    }
    for command, message in commands.items():
        with pytest.raises(SystemExit) as exit:
            main([*command, "--model", "no-such-model"])  # it would be missed later
        assert exit.value.code == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split()))
