"""One step of training cut in any way, in one process or two, whole or with adapters, is the same step."""

import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import write_samples
from killing import KilledError, kill_at
from transformers import HiggsAudioV2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from higgs_audio.convert import convert
from higgs_audio.data.phones import PHONES, phones
from higgs_audio.data.shards import EncodedClip
from higgs_audio.errors import NumericsError, OptionError, RecipeError
from higgs_audio.model.model import IGNORED, HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.text.phonemes import phonemize
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.batches import Collated, MicroBatcher
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.guide import Guide
from higgs_audio.train_lm.lora import LORA_TARGETS, Lora, add_lora, choose_trained, merged
from higgs_audio.train_lm.losses import LanguageModelLoss, LossWeights, counts, weighted
from higgs_audio.train_lm.packing import pack
from higgs_audio.train_lm.recipe import LanguageModelRecipe, mix_of, weights_of
from higgs_audio.train_lm.start import first_model, new_model
from higgs_audio.training import sharded
from higgs_audio.training.parallel import World, join_world, shares
from higgs_audio.training.recipe import load_recipe
from higgs_audio.training.run import Run, apply_step
from higgs_audio.training.sharded import ShardedState

TEXTS = ("The sun rises in the east.", "Nobody knows.", "We walked along the river.", "Seven men sat down.")
END = 1025
SPEAKERS = {"ava": 0, "joe": 1}  # whom the guide can name
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


def make_clip(number):
    text = TEXTS[number % len(TEXTS)]
    rng, num_frames = np.random.default_rng(number), 10 + 5 * (number % 7)
    return text, rng.integers(0, 1024, (8, num_frames)), np.linspace(0, len(phones(text)) - 1, num_frames).astype(int)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("prepared"), [make_clip(n) for n in range(24)])


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return HiggsAudioProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture
def recipe(prepared, tiny_checkpoint, tmp_path):
    return LanguageModelRecipe(
        data=str(prepared),
        heldout=str(prepared),
        processor=str(tiny_checkpoint),
        output=str(tmp_path / "run"),
        text_config=TEXT,
        profiles={"ava": "Ava"},
        default_speaker="ava",
        num_steps=6,
        batch_positions=700,
        more_turns=(0.5, 0.5),
        guide_layers=(0,),
        phone_layer=1,
        voice_layers=(1,),
        voice_weight=0.3,
        name_layer=0,
        name_weight=0.3,
        z_weight=1e-3,
        warmup=2,
        peak_rate=3e-3,
        log_every=1,
        save_every=3,
        check_every=3,
        device="cpu",
    )


@pytest.fixture
def dialogues():
    samples = [
        EncodedClip(str(n), text, phonemize(text), "ava", codes, heard.astype(np.uint16))
        for n, (text, codes, heard) in enumerate(make_clip(n) for n in range(7))
    ]
    pairs = [Dialogue((samples[n], samples[n + 1]), "Ava" if n % 2 else None) for n in range(5)]
    return [*pairs, Dialogue((samples[2], samples[0], samples[5], samples[6]), speakers=(0, 1, 1, 0))]


def new_lesson(processor, guided=True):
    model = new_model(LanguageModelRecipe("", "", "", "", text_config=TEXT), processor).train()
    return LanguageModelLoss(
        model, Guide(model, (0,), 1, len(PHONES) + 1, (1,), 0, len(SPEAKERS)) if guided else None, with_z=True
    )


# The terms of the loss


def test_the_terms_are_the_losses_of_the_model(dialogues, processor):
    lesson = new_lesson(processor, guided=False)
    batch = collate(dialogues, processor, speakers=SPEAKERS)
    sums, numbers = lesson(batch), counts(batch, END)
    out = lesson.model(**batch.inputs)
    books = torch.stack([sums[f"codebook_{k}"] / numbers[f"codebook_{k}"] for k in range(8)])
    torch.testing.assert_close(books, out.codebook_losses)
    torch.testing.assert_close(sums["text"] / numbers["text"], out.text_loss)
    loss = weighted(sums, numbers, LossWeights(text=1.0, codebooks=(1.0,) * 8))
    torch.testing.assert_close(loss, out.loss)


def test_ends_and_normalizers_are_those_of_a_loop_over_every_cell(dialogues, processor):
    lesson = new_lesson(processor, guided=False)
    batch = collate(dialogues[:2], processor)
    sums, numbers = lesson(batch), counts(batch, END)
    logits = lesson.model(**batch.inputs).logits.detach()  # [B, T, K, V + 2]
    ends = squares = cells = 0
    audio = lesson.model.model.audio_mask(batch.inputs["input_ids"])
    for row in range(2):
        places = audio[row].nonzero().squeeze(1).tolist()
        for (before, _), labels in zip(itertools.pairwise(places), batch.inputs["audio_labels"][row, 1:], strict=False):
            for book in (labels != IGNORED).nonzero().squeeze(1).tolist():
                scores = logits[row, before, book]
                cells += 1
                squares += float(scores.logsumexp(0)) ** 2
                ends -= float(scores.log_softmax(0)[END]) if int(labels[book]) == END else 0.0
    assert float(sums["z"].detach()) == pytest.approx(squares, rel=1e-4)
    assert float(sums["end"]) == pytest.approx(ends, rel=1e-4)
    assert numbers["z"] == cells
    assert numbers["end"] == 8 * sum(len(d.turns) - d.first_trained for d in dialogues[:2])


def test_a_batch_without_labels_adds_nothing(dialogues, processor):
    lesson = new_lesson(processor)
    batch = MicroBatcher(processor, 1, 2, 1, 0, False, 1024, 0, SPEAKERS).cut(dialogues[:1], 0, 0.0)[0]
    assert not any(counts(batch, END).values())
    weighted(lesson(batch), counts(batch, END), LossWeights(1.0, (1.0,) * 8, 1.0, 1.0, 1.0, 1.0, 1.0)).backward()
    assert not any(bool(w.grad.any()) for w in lesson.parameters() if w.grad is not None)


@pytest.mark.parametrize("cuts", [(2, 1), (1, 3), (2, 2), (4, 2)], ids=str)
def test_a_step_cut_into_pieces_has_the_gradient_of_the_whole(dialogues, processor, cuts):
    """Means of means would weigh the labels of a short micro-batch more; so every loss is over the labels of all."""
    lesson, whole = new_lesson(processor), MicroBatcher(processor, 0, 1, 1, 25, False, 1024, 3, SPEAKERS)
    size, accumulate = cuts
    cutters = [MicroBatcher(processor, rank, size, accumulate, 25, False, 1024, 3, SPEAKERS) for rank in range(size)]
    pieces = [batch for cutter in cutters for batch in cutter.cut(dialogues, 7, 0.2)]
    assert len(pieces) == size * accumulate
    weights = LossWeights(0.5, (4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 1e-3, 0.3, 0.2, 0.4, 0.5)
    gradients = []
    for batches in (whole.cut(dialogues, 7, 0.2), pieces):
        lesson.zero_grad()
        numbers = lm.add_up([counts(batch, END) for batch in batches], World())
        for batch in batches:
            weighted(lesson(batch), numbers, weights).backward()
        gradients.append([weight.grad.clone() for weight in lesson.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_has_the_loss_and_gradient_of_its_conversations_apart(dialogues, processor, attention):
    lesson = new_lesson(processor)
    lesson.model.set_attn_implementation(attention)
    weights, gradients = LossWeights(0.5, (2.0, *(1.0,) * 7), 1e-3, 0.3, 0.2, 0.4, 0.5), []
    apart = [collate([dialogue], processor, speakers=SPEAKERS) for dialogue in dialogues]
    together = pack(collate(dialogues, processor, speakers=SPEAKERS))
    assert together.inputs["input_ids"].shape[1] == sum(batch.inputs["input_ids"].shape[1] for batch in apart)
    assert counts(together, END) == lm.add_up([counts(batch, END) for batch in apart], World())
    for batches in (apart, [together]):
        lesson.zero_grad()
        sums = [lesson(batch) for batch in batches]
        numbers = counts(together, END)
        sum(weighted(terms, numbers, weights) for terms in sums).backward()
        gradients.append([weight.grad.clone() for weight in lesson.parameters()])
        losses = lm.add_up([{name: value.detach() for name, value in terms.items()} for terms in sums], World())
        gradients[-1].append(torch.tensor(list(losses.values())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_shares_hold_every_item_once_and_are_about_equal():
    sizes = [5, 1, 9, 4, 4, 2, 7]
    for count in (1, 2, 3, 10):
        chosen = shares(sizes, count)
        assert sorted(itertools.chain(*chosen)) == list(range(7))
        assert len(chosen) == count
    halves = [sum(sizes[n] for n in numbers) for numbers in shares(sizes, 2)]
    assert max(halves) - min(halves) <= 2


# One process or two


def read_losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "step_seconds"} for line in lines]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


DIE_AT_STEP = """
import os, sys
from higgs_audio.cli import main
from higgs_audio.train_lm import lm
steps, apply_step = [], lm.apply_step
def apply_or_die(*args):
    steps.append(1)
    if len(steps) == 5:
        os._exit(9)
    return apply_step(*args)
lm.apply_step = apply_or_die
main()
"""


def run_processes(recipe, count, tmp_path, die=False):
    """The run under torchrun with `count` gloo processes, which `die` in the fifth step where asked to."""
    file, script = tmp_path / "recipe.yaml", tmp_path / "die.py"
    lm.save_recipe(recipe, file)
    script.write_text(DIE_AT_STEP)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += [f"--master-port={free_port()}", *([str(script)] if die else ["-m", "higgs_audio"])]
    done = subprocess.run(
        [*command, "train", "lm", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == die, done.stderr[-3000:]


def assert_same_losses(one, other, tolerance):
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=tolerance, abs=tolerance)


def test_two_processes_have_the_losses_of_one_and_one_goes_on_from_their_state(recipe, tmp_path):
    """FSDP2 over gloo. The third run is two processes that die in the fifth step, then one from the third on."""
    one, two, mixed = (tmp_path / name for name in ("one", "two", "mixed"))
    lm.train_language_model(dataclasses.replace(recipe, output=str(one)))
    run_processes(dataclasses.replace(recipe, output=str(two)), 2, tmp_path)
    assert_same_losses(read_losses(one), read_losses(two), 1e-4)
    weights = [HiggsAudioForConditionalGeneration.from_pretrained(run / "model").state_dict() for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
    recipe = dataclasses.replace(recipe, output=str(mixed))
    run_processes(recipe, 2, tmp_path, die=True)
    assert [line["step"] for line in read_losses(mixed)][-1] == 4
    lm.train_language_model(recipe)  # from step 3 on
    assert_same_losses(read_losses(one), read_losses(mixed), 1e-4)


def test_a_state_of_another_model_is_a_recipe_error(recipe):
    lm.train_language_model(dataclasses.replace(recipe, num_steps=3))
    wider = {**TEXT, "hidden_size": 64}
    with pytest.raises(RecipeError, match=r"another recipe.s run: .* there and .* here"):
        lm.train_language_model(dataclasses.replace(recipe, text_config=wider))


def test_a_device_that_is_not_there_is_an_option_error():
    for device in ("tpu", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(OptionError, match="train on"):
            join_world(device)


def test_a_loss_that_is_not_finite_stops_before_the_step(processor):
    lesson = new_lesson(processor, guided=False)
    before = [weight.detach().clone() for weight in lesson.parameters()]
    optimizer = torch.optim.AdamW(lesson.parameters())
    for weight in lesson.parameters():
        weight.grad = torch.ones_like(weight)
    with pytest.raises(NumericsError):
        apply_step(float("nan"), lesson, optimizer, 1.0, 1.0)
    assert all(torch.equal(*pair) for pair in zip(before, lesson.parameters(), strict=True))


# Parts and adapters


def trained_names(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_the_audio_part_is_what_text_never_touches(processor):
    model = new_lesson(processor).model
    choose_trained(model, ["audio"])
    kinds = {".".join(part for part in name.split(".") if not part.isdigit()) for name in trained_names(model)}
    feed_forward = {f"model.layers.audio_mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    norms = {f"model.layers.audio_{name}_layernorm.weight" for name in ("input", "post_attention")}
    tables = {"model.embed_audio_tokens.embed_audio_tokens.weight", "audio_lm_head.weight"}
    assert kinds == feed_forward | norms | tables


def test_every_parameter_is_in_a_part(processor):
    model = new_lesson(processor).model
    choose_trained(model, ["audio", "text", "attention"])
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


def test_a_part_that_does_not_exist_is_a_recipe_error_that_names_the_nearest(processor):
    with pytest.raises(RecipeError, match="did you mean 'audio'"):
        choose_trained(new_lesson(processor).model, ["audi"])


def test_frozen_parts_stay_and_the_others_move(recipe, processor):
    before = first_model(recipe, processor).state_dict()
    path = lm.train_language_model(dataclasses.replace(recipe, train=("audio",), guide_weight=0.0, phone_weight=0.0))
    after = HiggsAudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("audio" in name for name in moved)


@pytest.mark.parametrize("also", [(), ("heads",)], ids=str)
def test_merged_adapters_are_the_adapters_applied(dialogues, processor, also):
    model = new_lesson(processor).model.eval()
    plain = new_lesson(processor).model.eval()
    lora = Lora(rank=4, alpha=12.0, also=also)
    add_lora(model, lora)
    trained = trained_names(model)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained if ".lora_" in name} == set(LORA_TARGETS)
    assert any(".audio_mlp." in name for name in trained)
    assert {name for name in trained if ".lora_" not in name} == (
        {"audio_lm_head.weight", "text_lm_head.weight"} if also else set()
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.1)
    inputs = collate(dialogues[:2], processor).inputs
    untouched = plain(**inputs).logits
    plain.load_state_dict(merged(model.state_dict(), lora))
    logits = model(**inputs).logits
    torch.testing.assert_close(plain(**inputs).logits, logits, rtol=1e-4, atol=1e-4)
    assert float((untouched - logits).detach().abs().max()) > 1e-2


def test_a_run_with_adapters_leaves_a_plain_checkpoint_and_resumes(recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, lora_rank=4, guide_weight=0.0, phone_weight=0.0)
    path = lm.train_language_model(recipe)
    model = HiggsAudioForConditionalGeneration.from_pretrained(path)
    assert not any("lora" in name for name in model.state_dict())
    broken = dataclasses.replace(recipe, output=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        kill_at(patch, lm, 5)
        with pytest.raises(KilledError):
            lm.train_language_model(broken)
    again = lm.train_language_model(broken)
    ours, theirs = (HiggsAudioForConditionalGeneration.from_pretrained(p).state_dict() for p in (path, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_fine_tuned_checkpoint_loads_in_transformers(recipe, dialogues, processor, tmp_path):
    fields = {"guide_weight": 0.0, "phone_weight": 0.0, "lora_rank": 4, "train": ("heads",)}
    path = lm.train_language_model(dataclasses.replace(recipe, **fields))
    exported = convert(path, tmp_path / "exported", "transformers")
    theirs, report = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        exported, use_text_head=True, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
    ours = HiggsAudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    inputs = collate(dialogues[:1], processor).inputs
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "audio_input_ids", "audio_input_ids_mask")}
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(**given).logits, ours(**given).logits.flatten(2), rtol=0, atol=1e-5)


def test_frozen_weights_can_be_held_in_half(recipe):
    half = dataclasses.replace(
        recipe,
        lora_rank=4,
        precision="bfloat16",
        frozen_precision="bfloat16",
        guide_weight=0.0,
        phone_weight=0.0,
        voice_layers=(),
        name_weight=0.0,
        num_steps=24,
        peak_rate=3e-2,
        gradient_checkpointing=True,
    )
    state = HiggsAudioForConditionalGeneration.from_pretrained(lm.train_language_model(half)).state_dict()
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    losses = [line["heldout"] for line in read_losses(Path(half.output)) if "heldout" in line]
    assert losses[-1] < losses[0]


def test_a_run_whose_batches_others_make_is_the_same_run_and_a_lost_process_is_told(recipe, tmp_path):
    others = dataclasses.replace(recipe, output=str(tmp_path / "others"), num_workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collated, "__getitem__", lambda self, window: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(RecipeError, match=r"lost .*DataLoader worker.*num_workers=1"):
            lm.train_language_model(others)
    path, whole = lm.train_language_model(others), lm.train_language_model(recipe)
    assert (path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_speaks_as_it_learns_and_is_the_same_run(recipe, tmp_path):
    """Speaking changes no weight; the sounds of a step have a folder, and their word error rate a line."""
    silent = lm.train_language_model(recipe)
    speaking = dataclasses.replace(recipe, output=str(tmp_path / "speaking"), sample_every=3, num_samples=2)
    path = lm.train_language_model(speaking)
    assert (path / "model.safetensors").read_bytes() == (silent / "model.safetensors").read_bytes()
    files = sorted(p.relative_to(path.parent / "samples").as_posix() for p in path.parent.rglob("samples/*/*"))
    assert files == ["3/0.wav", "3/1.wav", "6/0.wav", "6/1.wav"]
    lines = [line for line in read_losses(path.parent) if "sample_wer" in line]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(line["sample_seconds"] > 0 for line in lines)


@pytest.mark.parametrize("name", ["precision", "frozen_precision"])
def test_a_precision_that_does_not_exist_is_a_recipe_error(recipe, name):
    with pytest.raises(RecipeError, match="did you mean 'bfloat16'"):
        lm.train_language_model(dataclasses.replace(recipe, **{name: "bfloat"}))


@pytest.mark.parametrize(
    "change",
    [
        {"lora_rank": -1},
        {"accumulate": 0},
        {"num_samples": 0},
        {"num_steps": 0},
        {"log_every": 0},
        {"patience": -1},
        {"reference_labels_after": -5},
        {"voice_weight": -1.0},
        {"z_weight": float("nan")},
        {"attention": "flash"},
        {"train": ("adio",)},
        {"voice_layers": (9,)},
        {"name_layer": 9},
        {"num_workers": -1},
        {"switch_share": 7.0},
        {"several_share": -0.1},
    ],
    ids=str,
)
def test_what_a_recipe_cannot_mean_is_a_recipe_error_before_anything_is_written(recipe, change):
    """Some of them divided by zero, some came as errors of other packages, and some ran."""
    with pytest.raises(RecipeError, match=next(iter(change))):
        lm.train_language_model(dataclasses.replace(recipe, **change))
    assert not Path(recipe.output).exists()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").rglob("*lm*.yaml")), ids=str)
def test_every_recipe_of_the_repository_is_read(path):
    recipe = load_recipe(path, LanguageModelRecipe)
    assert mix_of(recipe) and len(recipe.codebook_weights) == 8
    assert weights_of(recipe, 0).of("codebook_0") > 0


# What a run begins with


def test_a_llama_becomes_the_trunk_for_text_and_sound(recipe, processor, tmp_path):
    config = LlamaConfig(**{**TEXT, "vocab_size": 300, "tie_word_embeddings": True})
    llama = LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path / "llama")
    model = first_model(dataclasses.replace(recipe, base=str(tmp_path / "llama"), text_config={}), processor).eval()
    ids = torch.randint(20, 300, (1, 9))
    ids[torch.isin(ids, torch.tensor(model.config.audio_placeholder_ids))] = 20
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).text_logits[..., :300], llama(input_ids=ids).logits)
    layer, given = model.model.layers[0], llama.model.layers[0]
    assert torch.equal(layer.audio_mlp.gate_proj.weight, given.mlp.gate_proj.weight)
    assert torch.equal(layer.audio_input_layernorm.weight, given.input_layernorm.weight)
    rows = model.model.embed_tokens.weight
    assert len(rows) == len(processor.tokenizer) > 300
    torch.testing.assert_close(rows[300:], llama.model.embed_tokens.weight.mean(0).expand(len(rows) - 300, -1))


def test_a_run_begins_with_a_checkpoint_or_a_llama(recipe, processor):
    with pytest.raises(RecipeError, match="one of them"):
        first_model(dataclasses.replace(recipe, start="a", base="b"), processor)


# The best checkpoint


def test_a_run_is_stale_after_as_many_checks_without_a_better_one(tmp_path):
    run = Run(tmp_path)
    seen = []
    for step, value in enumerate([3.0, 2.0, 2.5, 2.0, 1.5, 1.6, 1.7], start=1):
        run.record(step, {"heldout": value})
        seen.append((run.is_best("heldout"), run.is_stale("heldout", 2), run.is_stale("heldout", 0)))
    assert [best for best, *_ in seen] == [True, True, False, False, True, False, False]
    assert [stale for _, stale, _ in seen] == [False, False, False, True, False, False, True]
    assert not any(never for *_, never in seen)
    again = Run(tmp_path)
    again.continue_from(5)
    assert again.is_best("heldout")
    assert not again.is_stale("heldout", 2)


# The state of a run


def save_without_place(save, values, **options):
    save({name: value for name, value in values.items() if name != "place"}, **options)


@pytest.mark.parametrize("with_place", [True, False])
def test_a_state_is_resumed_with_its_place_and_one_from_before_without(tmp_path, monkeypatch, with_place):
    """A run that was going on when places came was called damaged."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = ShardedState(tmp_path, layer, optimizer, World())
    if not with_place:
        monkeypatch.setattr(sharded, "save", partial(save_without_place, sharded.save))
    state.save(7, (3, 2))
    other = torch.nn.Linear(2, 2)
    again = ShardedState(tmp_path, other, torch.optim.AdamW(other.parameters()), World())
    assert again.resume() == (7, (3, 2) if with_place else None)
    assert torch.equal(other.weight, layer.weight)
