"""Tiny training runs: corpora, recipes, runs that are killed and resumed, comparisons of run folders."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from corpus import HUBERT, TEXT, TEXTS, write_corpus, write_samples
from killing import KilledError, killed_at
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from higgs_audio.data.phones import phones
from higgs_audio.data.prepare import PrepareRecipe, prepare
from higgs_audio.data.shards import EncodedClip
from higgs_audio.delay import revert_delay
from higgs_audio.generation.loop import generate
from higgs_audio.prompt.prompt import Prompt, Turn, to_messages
from higgs_audio.text.phonemes import phonemize
from higgs_audio.train_codec.recipe import TokenizerRecipe
from higgs_audio.train_codec.teacher import TeacherRecipe
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.recipe import LanguageModelRecipe
from higgs_audio.train_lm.start import new_model

VOCOS = {
    "body": "vocos",
    "hidden_size": 8,
    "encoder_widths": [8, 8],
    "encoder_depths": [1, 1],
    "decoder_widths": [8, 8],
    "decoder_depths": [1, 1],
}
GROUPED_TEXT = {
    **TEXT,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}
SENTENCES = ("The sun rises in the east.", "Nobody knows.", "We walked along the river.", "Seven men sat down.")
OVERFIT = {  # for a few clips, without regularization
    "short_share": 0.0,
    "reference_share": 0.0,
    "plain_share": 0.0,
    "codebook_weights": (1.0,) * 8,
    "text_weight": 1.0,
    "corruption": 0.0,
    "final_corruption": 0.0,
    "weight_decay": 0.0,
    "log_every": 50,
    "save_every": 1000,
    "check_every": 1000,
}


def write_timed_corpus(folder):
    """Writes six clips of two speakers; the manifest has phone times for three of them."""
    speakers = ("ava", "joe")
    entries = [(f"clip-{n}", {"text": t, "speaker": speakers[n % 2], "timed": n < 3}) for n, t in enumerate(TEXTS)]
    return write_corpus(folder, entries)


def manifest_line(**fields):
    return {"id": "a", "audio": "a.wav", "text": "A.", "speaker": "ava", "seconds": 1.0, **fields}


def random_clips(texts):
    """Returns texts with random codes of 5 to 9 frames and the phone of each frame, for `write_samples`."""
    rng = np.random.default_rng(0)
    clips = []
    for text in texts:
        num_frames = int(rng.integers(5, 10))
        indices = np.linspace(0, len(phones(text)) - 1, num_frames).astype(int)
        clips.append((text, rng.integers(0, 1024, (8, num_frames)), indices))
    return clips


def encode_corpus(folder, checkpoint, teacher=""):
    """Encodes the timed corpus, and aligns it if there is a teacher. A teacher with random weights gives low scores."""
    corpus = write_timed_corpus(folder)
    recipe = prepare_recipe(corpus, teacher, checkpoint, folder / "encoded", clips_per_part=2, min_score=-100.0)
    assert prepare(recipe) == {"kept": len(TEXTS)}
    return folder / "encoded"


def random_clip(number):
    """Returns a text, random codes of 10 to 40 frames, and the phone of each frame."""
    text = SENTENCES[number % len(SENTENCES)]
    rng, num_frames = np.random.default_rng(number), 10 + 5 * (number % 7)
    return text, rng.integers(0, 1024, (8, num_frames)), np.linspace(0, len(phones(text)) - 1, num_frames).astype(int)


def random_dialogues():
    """Returns five conversations of two turns, and one of four turns by two speakers; codes are random."""
    clips = [
        EncodedClip(str(n), text, phonemize(text), "ava", codes, indices.astype(np.uint16))
        for n, (text, codes, indices) in enumerate(random_clip(n) for n in range(7))
    ]
    pairs = [Dialogue((clips[n], clips[n + 1]), "Ava" if n % 2 else None) for n in range(5)]
    return [*pairs, Dialogue((clips[2], clips[0], clips[5], clips[6]), speakers=(0, 1, 1, 0))]


def teacher_recipe(corpus, **fields):
    sizes = {"num_steps": 8, "timed_steps": 4, "batch_seconds": 4.0, "warmup": 2, "save_every": 2, "log_every": 2}
    return TeacherRecipe(str(corpus), "", hubert=HUBERT, **{**sizes, **fields})


def tokenizer_recipe(corpus, output, **fields):
    sizes = {"body": VOCOS, "codebook_dim": 8, "batch": 4, "crop_seconds": 0.4, "kmeans_batches": 26}
    steps = {"num_steps": 4, "warmup_unquantized": 1, "warmup": 1, "save_every": 2, "log_every": 2}
    return TokenizerRecipe(str(corpus), str(output), **{**sizes, **steps, **fields})


def prepare_recipe(corpus, tiny_teacher, tiny_checkpoint, output, **fields):
    return PrepareRecipe(str(corpus), str(tiny_checkpoint / "codec"), str(tiny_teacher), str(output), **fields)


def lm_recipe(encoded, checkpoint, **fields):
    sizes = {
        "text_config": TEXT,
        "profiles": {"ava": "Ava"},
        "default_speaker": "ava",
        "guide_layers": (0,),
        "phone_layer": 1,
        "warmup": 2,
        "log_every": 2,
        "save_every": 2,
        "check_every": 4,
    }
    paths = {"data": str(encoded), "heldout": str(encoded), "processor": str(checkpoint), "output": ""}
    return LanguageModelRecipe(**{**paths, **sizes, **fields})


def many_losses_recipe(folder, checkpoint):
    """Returns the recipe of a run on 24 clips with random codes and every loss, in `folder / "run"`."""
    (folder / "clips").mkdir()
    data = write_samples(folder / "clips", [random_clip(n) for n in range(24)])
    guide = {"voice_layers": (1,), "voice_weight": 0.3, "name_layer": 0, "name_weight": 0.3, "z_weight": 1e-3}
    sizes = {"text_config": GROUPED_TEXT, "num_steps": 6, "batch_positions": 700, "more_turns": (0.5, 0.5)}
    steps = {"peak_rate": 3e-3, "log_every": 1, "save_every": 3, "check_every": 3, "device": "cpu"}
    return lm_recipe(data, checkpoint, output=str(folder / "run"), **guide, **sizes, **steps)


def tiny_model(processor, text_config=GROUPED_TEXT):
    return new_model(LanguageModelRecipe("", "", "", "", text_config=text_config), processor).train()


def generated_codes(model, processor, text):
    """Returns the codes that the model generates greedily for a text, and the finish reason."""
    messages = to_messages(Prompt((Turn(text),), profiles={"SPEAKER0": "Ava"}))
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, output_labels=False)
    output = generate(model, **inputs, do_sample=False, max_new_tokens=40)
    (segment,) = output.audio_sequences[0]
    return revert_delay(segment).numpy(), output.finish_reasons[0]


def check_resumed(tmp_path, train, recipe, kills):
    """Compares an uninterrupted run with one that is killed at each of `kills` (steps since its start) and resumed."""
    train(dataclasses.replace(recipe, output=str(tmp_path / "whole")))
    broken = dataclasses.replace(recipe, output=str(tmp_path / "broken"))
    for step in kills:
        with killed_at(step), pytest.raises(KilledError):
            train(broken)
    train(broken)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def assert_same_run(one, other):
    """Asserts that two folders have the same checkpoint, training state and metrics, bit for bit, except for times."""
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    assert_same(read_state(one), read_state(other))
    assert read_metrics(one) == read_metrics(other)


def read_state(folder):
    """Returns the training state of a run, in one file or sharded."""
    if (folder / "state.pt").exists():
        return torch.load(folder / "state.pt", weights_only=True)
    dcp_to_torch_save(folder / "state", folder / "whole.pt")
    return torch.load(folder / "whole.pt", weights_only=False)


def assert_same(one, other):
    """Asserts that nested dictionaries and lists are equal, tensors bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def read_metrics(folder):
    """Returns the lines of `metrics.jsonl` without their times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "step_seconds"} for line in lines]


def contents(folder):
    """Returns the names and bytes of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def steps_of(folder):
    """Returns the numbers of the steps in a run's metrics so far, without an incomplete line."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]
