"""Tests of the four programs of the published model card, as in examples/, on nano, and of the intelligibility of their
audio.
"""

import re
import runpy
from pathlib import Path

import pytest
import torch

from higgs_audio import NANO, HiggsAudio
from higgs_audio.audio.files import read, write
from higgs_audio.audio.waveform import Waveform
from higgs_audio.evaluate.metrics import word_errors
from higgs_audio.listen.asr import transcribe
from higgs_audio.listen.speaker import similarity

EXAMPLES = Path(__file__).parents[2] / "examples"
SUN = (
    "The sun rises in the east and sets in the west. This simple fact has been observed by humans for thousands of "
    "years."
)
DOCTRINE = (
    "It is a doctrine of comfort and complacency, and, like all gospels, it tells its followers precisely what they "
    "wish to hear."
)
GUESS = (
    "I hear that you can understand what people say and even know their age and gender, so can you guess my age and "
    "gender from my voice?"
)
QUILTER = "Mr. Quilter is the apostle of the middle classes, and we are glad to welcome his gospel."
LOAD = [
    'processor = AutoProcessor.from_pretrained(checkpoint, device_map=torch_device, torch_dtype="auto")',
    "model = HiggsAudioForConditionalGeneration.from_pretrained(checkpoint, device_map=torch_device, "
    'torch_dtype="auto")',
    "inputs = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True).to(torch_device)",
]
SPEAK = [
    "outputs = model.generate(**inputs, max_length=1024, temperature=0.3, top_p=0.95, top_k=50, "
    "tokenizer=processor.tokenizer, do_sample=True)",
    "response = processor.decode(outputs[0], outputs[1], "
    "prompt_token_length=processor.get_prompt_len(inputs.input_ids))",
    'processor.save_audio(response.audio, "output.wav")',
]
TRAIN = ["out = model(**inputs)", "out.loss.backward()"]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Returns recordings of the two reference texts of the programs, in two voices."""
    folder = tmp_path_factory.mktemp("references")
    tts = HiggsAudio.from_pretrained("nano")
    for voice, text in (("ava", GUESS), ("joe", QUILTER)):
        write(tts.generate(text, voice=voice, seed=0).waveform, folder / f"{voice}.wav")
    return {voice: str(folder / f"{voice}.wav") for voice in ("ava", "joe")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a function that runs a program, once for each list of arguments, and returns its variables and its
    audio."""
    done = {}

    def run(name, *arguments):
        if (name, arguments) not in done:
            done[name, arguments] = run_example(name, arguments, tmp_path_factory.mktemp(name))
        return done[name, arguments]

    return run


def run_example(name, arguments, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", [name, str(NANO), *arguments])  # the arguments of a program that runs in this process
        torch.manual_seed(0)
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    return variables, read(folder / "output.wav") if (folder / "output.wav").exists() else None


def word_error_rate(waveform, text):
    errors = word_errors(text, transcribe([waveform])[0].text)
    return errors.errors / errors.total


@pytest.mark.parametrize(
    ("name", "calls"), [("text", SPEAK), ("clone", SPEAK), ("dialogue", SPEAK), ("training", TRAIN)]
)
def test_the_programs_contain_the_calls_of_the_model_card(name, calls):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in [*LOAD, *calls] if line not in lines] == []
    assert "from higgs_audio import HiggsAudioForConditionalGeneration, AutoProcessor, AutoTokenizer" in lines


def test_generated_speech_is_transcribed_by_whisper(run):
    """Without force_audio: nano generates <|audio_out_bos|> itself."""
    variables, waveform = run("text")
    inputs, outputs, response = variables["inputs"], variables["outputs"], variables["response"]
    prompt_length = inputs.input_ids.shape[1]
    opening = variables["processor"].tokenizer.convert_tokens_to_ids("<|audio_out_bos|>")
    assert outputs[0][0, prompt_length] == opening
    assert [segment.shape[0] for segment in outputs[1]] == [8]
    assert (response.generated_text, response.sampling_rate, waveform.sample_rate) == ("", 24000, 24000)
    assert len(response.audio) == len(waveform) == 960 * (outputs[1][0].shape[1] - 9)
    assert word_error_rate(waveform, SUN) <= 0.5


@pytest.mark.parametrize("voice", ["ava", "joe"])
def test_a_clone_is_most_similar_to_its_own_reference(run, references, voice):
    """The reference text of the program is that of ava; the voice is cloned even with the wrong text."""
    _, waveform = run("clone", references[voice])
    other = {"ava": "joe", "joe": "ava"}[voice]
    assert similarity(waveform, read(references[voice])) > similarity(waveform, read(references[other]))


def test_the_transcript_of_a_clone_is_its_text(run, references):
    _, waveform = run("clone", references["ava"])
    assert word_error_rate(waveform, SUN) <= 0.25


def test_a_dialogue_generates_audio(run, references):
    variables, waveform = run("dialogue", references["ava"], references["joe"])
    assert isinstance(waveform, Waveform) and 2 < waveform.seconds < 20
    assert variables["inputs"].audio_input_ids.shape[2] == 8


def test_a_dialogue_has_the_voice_of_its_tag(run, references):
    _, waveform = run("dialogue", references["ava"], references["joe"])
    assert similarity(waveform, read(references["ava"])) > similarity(waveform, read(references["joe"]))


def test_the_transcript_of_a_dialogue_is_its_text(run, references):
    _, waveform = run("dialogue", references["ava"], references["joe"])
    assert word_error_rate(waveform, DOCTRINE) <= 0.25


def test_training_has_a_loss_and_a_gradient_for_every_part(run, references):
    variables, _ = run("training", references["ava"])
    out, model = variables["out"], variables["model"]
    assert out.loss.isfinite()
    assert torch.isclose(out.loss, out.text_loss + out.audio_loss)
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


def test_the_readme_names_every_example():
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"^`examples/` .*?\n\n", readme, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`(\w+)\.py`", paragraph)
    assert set(named) == {path.stem for path in EXAMPLES.glob("*.py")}
