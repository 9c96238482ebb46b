"""Training: recipes, order, codebooks, alignment, runs killed and resumed, and clips learned by heart.

Everything runs as it is, on tiny networks and clips of hummed phones made here.
"""

import dataclasses
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpus import HUBERT, RATE, TEXTS, hum, write_corpus, write_samples
from killing import KilledError, kill_at
from safetensors.numpy import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.nn import functional as F

import higgs_audio.model.layers
from higgs_audio.codec import HiggsAudioTokenizer, HiggsAudioTokenizerConfig
from higgs_audio.codec.quantizer import Codebook, ResidualVectorQuantizer
from higgs_audio.config import HiggsAudioConfig
from higgs_audio.data import prepare
from higgs_audio.data.align import align, nearest_phone, viterbi
from higgs_audio.data.clips import Clip, Sounds, batch_order, length_batches, to_short
from higgs_audio.data.manifest import read_manifests
from higgs_audio.data.phones import PHONES, phone_ids, phones
from higgs_audio.data.shards import read_encoded_clips
from higgs_audio.delay import revert_delay
from higgs_audio.errors import CheckpointError, NumericsError, RecipeError
from higgs_audio.evaluate.benchmark import heldout as heldout_sentences
from higgs_audio.generation.loop import generate
from higgs_audio.model.model import IGNORED, HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Prompt, Turn, to_messages
from higgs_audio.text.phonemes import phonemize
from higgs_audio.train_codec import decoder, teacher, tokenizer
from higgs_audio.train_codec import trainer as workshop
from higgs_audio.train_codec.codebook import DEAD_SHARE, kmeans, perplexity, revive, start_codebooks, update_codebook
from higgs_audio.train_codec.spectral import spectral_losses
from higgs_audio.train_lm import lm
from higgs_audio.train_lm.batches import BatchOrder, dialogue_batches
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.composer import Composer, ExampleMix
from higgs_audio.train_lm.corruption import corrupt
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.guide import GUIDED_HEAD, VOICE_HEAD, Guide, heard_before
from higgs_audio.train_lm.heldout import with_other_texts
from higgs_audio.train_lm.recipe import LanguageModelRecipe
from higgs_audio.train_lm.start import new_model
from higgs_audio.train_lm.tokens import grow_vocabulary
from higgs_audio.training import run
from higgs_audio.training.recipe import load_recipe, save_recipe

VOCOS = {
    "body": "vocos",
    "hidden_size": 8,
    "encoder_widths": [8, 8],
    "encoder_depths": [1, 1],
    "decoder_widths": [8, 8],
    "decoder_depths": [1, 1],
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six clips of two speakers; of three, a synthesizer told when each phone sounds."""
    entries = [
        (f"clip-{n}", {"text": text, "speaker": ("ava", "joe")[n % 2], "timed": n < 3}) for n, text in enumerate(TEXTS)
    ]
    return write_corpus(tmp_path_factory.mktemp("corpus"), entries)


@pytest.fixture(scope="module")
def prepared(corpus, tiny_teacher, tiny_checkpoint, tmp_path_factory):
    """The corpus as training material; an untrained teacher's alignment scores low, and is taken all the same."""
    output = tmp_path_factory.mktemp("prepared")
    counts = prepare.prepare(prepare_recipe(corpus, tiny_teacher, tiny_checkpoint, output, min_score=-100.0))
    assert counts == {"kept": len(TEXTS)}
    return output


def prepare_recipe(corpus, tiny_teacher, tiny_checkpoint, output, **fields):
    return prepare.PrepareRecipe(
        data=str(corpus),
        tokenizer=str(tiny_checkpoint / "codec"),
        teacher=str(tiny_teacher),
        output=str(output),
        **fields,
    )


# Recipes


RECIPE = "data: corpus\nteacher: t\noutput: run\n"


def read_recipe(tmp_path, text, kind=tokenizer.TokenizerRecipe, **overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, kind, overrides)


def test_a_recipe_is_read_with_its_defaults_numbers_written_either_way_and_overrides(tmp_path):
    recipe = read_recipe(tmp_path, RECIPE + "peak_rate: 1e-3\nmel_weight: 3\nbody: {body: dac}\n", seed=7)
    assert (recipe.peak_rate, recipe.mel_weight, recipe.body, recipe.seed) == (1e-3, 3.0, {"body": "dac"}, 7)
    assert recipe.num_steps == tokenizer.TokenizerRecipe("", "").num_steps


def test_an_override_reaches_into_a_mapping(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{data: a, heldout: b, processor: c, output: d, text_config: {hidden_size: 8, head_dim: 4}}")
    recipe = load_recipe(path, LanguageModelRecipe, {"text_config.hidden_size": 16, "text_config.mlp.bias": True})
    assert recipe.text_config == {"hidden_size": 16, "head_dim": 4, "mlp": {"bias": True}}
    with pytest.raises(RecipeError, match="holds nothing by name"):
        load_recipe(path, LanguageModelRecipe, {"output.here": 1})


def test_an_unknown_key_of_a_recipe_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r"unknown key 'num_step'; did you mean 'num_steps'\?"):
        read_recipe(tmp_path, RECIPE + "num_step: 3\n")
    with pytest.raises(RecipeError, match="did you mean 'seed'"):
        read_recipe(tmp_path, RECIPE, sed=3)


@pytest.mark.parametrize(
    "line",
    [
        *("num_steps: many", "num_steps: 1.5", "num_steps: true", "num_steps:", "peak_rate: high"),
        *("num_steps: [3]", "body: vocos", "data: 3", "peak_rate: true"),
    ],
)
def test_a_value_of_another_type_is_a_recipe_error(tmp_path, line):
    with pytest.raises(RecipeError, match=line.split(":")[0]):
        read_recipe(tmp_path, RECIPE + line + "\n")


@pytest.mark.parametrize("text", ["data: corpus\n", "[1, 2]", "- a\n- b", "a: [", ""])
def test_a_recipe_that_lacks_a_key_or_is_no_mapping_is_a_recipe_error(tmp_path, text):
    with pytest.raises(RecipeError):
        read_recipe(tmp_path, text)
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml", tokenizer.TokenizerRecipe)


@pytest.mark.parametrize(
    "recipe",
    [
        teacher.TeacherRecipe("corpus", "run", hubert=HUBERT, peak_rate=2e-5),
        tokenizer.TokenizerRecipe("corpus", "run", teacher="teacher", body=VOCOS),
        LanguageModelRecipe("a", "b", "c", "d", profiles={"ava": "Ava"}, guide_layers=(0,)),
        prepare.PrepareRecipe("a", "b", "c", "d"),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_a_recipe_comes_back_from_the_file_that_a_run_leaves(tmp_path, recipe):
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml", type(recipe)) == recipe


# Clips and their order


def random_lengths(count, seed=0):
    return np.random.default_rng(seed).integers(20, 400, count).tolist()


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_an_epoch_holds_every_clip_once_in_batches_within_the_budget(epoch):
    lengths = random_lengths(301)
    batches = length_batches(lengths, 1000, seed=3, epoch=epoch)
    assert sorted(itertools.chain(*batches)) == list(range(301))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 1000 for batch in batches)
    assert len(batches) < 1.3 * sum(lengths) / 1000, "clips of unlike lengths share batches"


def test_epochs_differ_and_are_a_function_of_seed_and_number():
    lengths = random_lengths(50)
    one = length_batches(lengths, 1000, seed=3, epoch=0)
    assert one == length_batches(lengths, 1000, seed=3, epoch=0)
    assert one != length_batches(lengths, 1000, seed=3, epoch=1)
    assert one != length_batches(lengths, 1000, seed=4, epoch=0)


@pytest.mark.parametrize("start", [0, 1, 7, 30])
def test_the_order_from_a_batch_on_is_the_rest_of_the_whole_order(start):
    lengths = random_lengths(40)
    whole = list(itertools.islice(batch_order(lengths, 1000, 5, 0), start + 20))
    assert list(itertools.islice(batch_order(lengths, 1000, 5, start), 20)) == whole[start:]


def test_a_clip_longer_than_a_batch_is_a_recipe_error():
    with pytest.raises(RecipeError, match="1001"):
        next(batch_order([3, 1001], 1000, 0, 0))


def test_manifests_are_read_by_split_and_length_in_the_order_of_ids(tmp_path):
    fields = {"text": "a", "speaker": "ava", "audio": "a.wav"}
    lines = [
        {"id": "b", "seconds": 2.0, **fields},
        {"id": "c", "seconds": 9.0, **fields},
        {"id": "d", "seconds": 2.0, "split": "heldout", **fields},
    ]
    (tmp_path / "manifest-0.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "manifest-1.jsonl").write_text(json.dumps({"id": "a", "seconds": 1.0, **fields}), encoding="utf-8")
    assert [clip.id for clip in read_manifests(tmp_path, max_seconds=8)] == ["a", "b"]
    (heldout,) = read_manifests(tmp_path, "heldout")
    assert heldout == Clip("d", tmp_path / "a.wav", "a", "ava", 2.0, "heldout")
    with pytest.raises(RecipeError, match="'tuning'"):
        read_manifests(tmp_path, "tuning")


def test_crops_are_stretches_of_clips_and_short_clips_are_repeated(corpus):
    clips = read_manifests(corpus)
    sounds = [torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0]) for clip in clips]
    for crop in Sounds(clips, RATE).random_crops(20, 4800, torch.Generator().manual_seed(0)):
        starts = [(sound, start) for sound in sounds for start in (sound == crop[0]).nonzero().flatten().tolist()]
        assert any(torch.equal(sound[start : start + 4800], crop) for sound, start in starts)
    length = 3 * max(map(len, sounds))
    assert Sounds(clips, RATE).random_crops(2, length, torch.Generator().manual_seed(0)).shape == (2, length)


def test_held_sounds_give_the_crops_that_files_give(corpus):
    clips = read_manifests(corpus)
    longest = round(max(clip.seconds for clip in clips) * RATE)
    for length in (4800, 2 * longest):
        read, held = (
            Sounds(clips, RATE, place).random_crops(8, length, torch.Generator().manual_seed(1))
            for place in (None, torch.device("cpu"))
        )
        torch.testing.assert_close(held, read, rtol=0, atol=0.5 / 32_768)


def test_an_unknown_matmul_precision_is_a_recipe_error(corpus, tmp_path, tiny_teacher):
    recipe = tokenizer_recipe(corpus, tmp_path / "run", teacher=str(tiny_teacher), matmul_precision="hihg")
    with pytest.raises(RecipeError, match="'high'"):
        tokenizer.train_tokenizer(recipe)
    assert not (tmp_path / "run").exists()


# Codebooks


def blobs(count, num_centres, seed=0):
    """`count` vectors [count, 16] around `num_centres` centres far from zero."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 + torch.randn(num_centres, 16, generator=generator)
    return centres[torch.arange(count) % num_centres] + 0.1 * torch.randn(count, 16, generator=generator)


def started_book(vectors, size=64, scale=1.0):
    """A codebook set by k-means, its sums and counts as `start_codebooks` sets them."""
    means, counts = kmeans(vectors, size, 10, torch.Generator().manual_seed(1))
    book = Codebook(size, vectors.shape[1])
    book.embed.copy_(means)
    book.cluster_size.copy_(counts * scale)
    book.embed_avg.copy_(means * book.cluster_size[:, None])
    return book


def quantization_error(book, vectors):
    return float((F.embedding(book.nearest(vectors), book.embed) - vectors).pow(2).mean())


def test_kmeans_ends_with_every_mean_in_the_middle_of_what_is_nearest_to_it():
    vectors = blobs(600, 6)
    means, counts = kmeans(vectors, 20, 60, torch.Generator().manual_seed(4))
    nearest = torch.cdist(vectors, means).argmin(1)
    for number in range(20):
        torch.testing.assert_close(means[number], vectors[nearest == number].mean(0))
        assert int(counts[number]) == int((nearest == number).sum())
    guess = vectors[torch.randperm(600, generator=torch.Generator().manual_seed(4))[:20]]
    errors = [float(torch.cdist(vectors, table).min(1).values.pow(2).mean()) for table in (means, guess)]
    assert errors[0] < errors[1]


def test_kmeans_leaves_no_cluster_empty_where_vectors_repeat():
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    means, counts = kmeans(vectors, 16, 5, torch.Generator().manual_seed(0))
    assert bool(means.isfinite().all())
    assert int(counts.min()) == 1


def test_running_averages_keep_the_codebook_that_kmeans_found():
    """Codebooks once shrank to a fifth of their quality in one step.

    EnCodec's and X-codec's code starts `embed_avg` as the means while `cluster_size` holds the counts, and the next
    update divides the one by the other. In a simulation the squared error rose from 0.257 to 1.373 with the first
    update and half of the entries were lost within sixty. Sums (means times counts), as Mimi has them, stay at 0.25.
    """
    vectors = blobs(4000, 200)
    book = started_book(vectors)
    before, norm = quantization_error(book, vectors), float(book.embed.norm())
    used = len(book.nearest(vectors).unique())
    for _ in range(60):
        update_codebook(book, vectors, book.nearest(vectors), decay=0.99)
        assert quantization_error(book, vectors) < 1.01 * before
        assert float(book.embed.norm()) > 0.99 * norm
    assert len(book.nearest(vectors).unique()) >= used

    shrinking = started_book(vectors)
    shrinking.embed_avg.copy_(shrinking.embed)
    update_codebook(shrinking, vectors, shrinking.nearest(vectors), decay=0.99)
    assert quantization_error(shrinking, vectors) > 3 * before, "the story above would not be caught"


def test_a_codebook_update_is_the_decayed_sum_over_the_decayed_count_entry_by_entry():
    vectors = blobs(300, 40)
    book = started_book(vectors, size=32)
    sums, counts = book.embed_avg.clone(), book.cluster_size.clone()
    codes = book.nearest(vectors)
    update_codebook(book, vectors, codes, decay=0.9)
    for entry in range(32):
        mine = vectors[codes == entry]
        count = 0.9 * counts[entry] + 0.1 * len(mine)
        wanted = (0.9 * sums[entry] + 0.1 * mine.sum(0)) / count
        torch.testing.assert_close(book.embed[entry], wanted)
        torch.testing.assert_close(book.cluster_size[entry], count)


def test_starting_leaves_every_codebook_consistent_and_each_layer_with_less_to_code():
    config = HiggsAudioTokenizerConfig(
        acoustic_model_config=VOCOS, semantic_model_config=HUBERT, codebook_dim=8, codebook_size=32
    )
    quantizer = ResidualVectorQuantizer(config)
    latents = torch.randn(1500, config.hidden_size, generator=torch.Generator().manual_seed(0))
    start_codebooks(quantizer, latents, 10, 0.1, torch.Generator().manual_seed(1))
    energies, residual = [float(latents.pow(2).mean())], latents
    for layer in quantizer.layers:
        book = layer.codebook
        torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], book.embed)
        assert float(book.inited) == 1
        assert 140 < float(book.cluster_size.sum()) < 160, "the counts of one batch of ten"
        residual = residual - layer.decode(layer.encode(residual)).detach()
        energies.append(float(residual.pow(2).mean()))
    assert all(after < before for before, after in itertools.pairwise(energies))


def test_entries_are_dead_relative_to_the_mean_usage():
    """With 1,600 vectors a batch and 1024 entries the mean usage is 1.56: a limit of 2 uses would kill most of them."""
    vectors = blobs(1600, 1600)
    book = started_book(vectors, size=1024)
    assert 1.5 < float(book.cluster_size.mean()) < 1.6
    assert float((book.cluster_size < 2).float().mean()) > 0.5
    assert revive(book, vectors, torch.Generator()) == 0
    limit = DEAD_SHARE * float(book.cluster_size.mean())
    book.cluster_size[:100], book.cluster_size[100:200] = 0.5 * limit, 1.5 * limit
    assert revive(book, vectors, torch.Generator().manual_seed(0)) == 100


def test_a_revived_entry_is_a_vector_of_the_batch_and_alive_afterwards():
    """Where only the entry is replaced, not its count and sum, it is dead again with the next step."""
    vectors = blobs(500, 50)
    book = started_book(vectors)
    book.cluster_size[3], book.embed[3], book.embed_avg[3] = 0, 1e6, 0
    assert revive(book, vectors, torch.Generator().manual_seed(0)) == 1
    revived = book.embed[3].clone()
    assert bool((vectors == revived).all(1).any())
    torch.testing.assert_close(book.embed_avg[3] / book.cluster_size[3], revived)
    update_codebook(book, vectors, book.nearest(vectors), decay=0.99)
    assert revive(book, vectors, torch.Generator().manual_seed(0)) == 0
    assert quantization_error(book, vectors) < 1


def test_perplexity_counts_the_entries_in_use():
    book = Codebook(64, 4)
    book.cluster_size[:16] = 3
    assert perplexity(book) == pytest.approx(16, rel=1e-4)
    book.cluster_size.fill_(1)
    assert perplexity(book) == pytest.approx(64, rel=1e-4)


# Alignment


def collapse(path):
    """The symbols that a CTC path says: repeats merged, blanks (0) left out."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol]


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2]], ids=str)
@pytest.mark.parametrize("steps", [4, 6])
def test_the_alignment_is_the_best_of_all_paths(ids, steps):
    for seed in range(5):
        scores = np.random.default_rng((seed, steps)).normal(size=(steps, 3)) * 2
        log_probs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        paths = [path for path in itertools.product(range(3), repeat=steps) if collapse(path) == ids]
        totals = [sum(log_probs[t, symbol] for t, symbol in enumerate(path)) for path in paths]
        found, total = viterbi(log_probs, ids)
        assert total == pytest.approx(max(totals))
        assert tuple(ids[i] if i >= 0 else 0 for i in found) == paths[int(np.argmax(totals))]
        assert list(found[found >= 0]) == sorted(found[found >= 0])


def test_more_phones_than_steps_or_a_pair_without_room_for_a_blank_do_not_fit():
    log_probs = np.zeros((3, 5))
    for ids in ([1, 2, 3, 4], [1, 1, 2]):
        with pytest.raises(ValueError, match="do not fit into 3 frames"):
            viterbi(log_probs, ids)


def test_blanks_belong_to_the_phone_nearer_in_time():
    path = np.array([-1, -1, 0, -1, -1, -1, 1, 1, -1, 2, -1, -1])
    assert nearest_phone(path).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_aligning_gives_one_phone_for_every_frame_in_order(tiny_teacher, corpus):
    clip = read_manifests(corpus)[0]
    model = teacher.HubertForCTC.from_pretrained(tiny_teacher).eval()
    sound = torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0])
    num_frames = (len(sound) + 841) // 960
    alignment = align(model, sound, phones(clip.text), num_frames)
    assert alignment.frames.shape == (num_frames,)
    assert (np.diff(alignment.frames.astype(int)) >= 0).all()
    assert alignment.frames.max() < len(phones(clip.text))
    assert alignment.score < 0


# Preparing


def test_prepared_clips_are_the_codes_of_their_sounds(prepared, corpus, tiny_checkpoint):
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec")
    clips, samples = read_manifests(corpus), read_encoded_clips(prepared)
    assert [sample.id for sample in samples] == [clip.id for clip in clips]
    for clip, sample in zip(clips, samples, strict=True):
        sound = torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0])
        assert np.array_equal(sample.codes, codec.encode(sound[None, None]).audio_codes[0].numpy())
        assert sample.phones.shape == (sample.num_frames,)
        assert (sample.text, sample.phonemes, sample.speaker) == (clip.text, phonemize(clip.text), clip.speaker)


# Conversations


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return HiggsAudioProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def samples(prepared):
    return read_encoded_clips(prepared)


@pytest.mark.parametrize("kind", ["reference", "profile", "plain"])
def test_a_conversation_is_trained_in_the_form_in_which_it_is_asked_for(samples, processor, kind):
    """All of a training prompt but the answer is what inference sends for the same voice and text.

    A turn with its codes once counted as a reference even as the answer, and a prompt without a profile, trained
    without the system turn that it is asked with, was another than any that would come.
    """
    reference, target = samples[0], samples[2]
    turns = (reference, target) if kind == "reference" else (target,)
    trained = Dialogue(turns, "Ava" if kind == "profile" else None)
    known = (Turn(reference.text, codes=reference.codes),) if kind == "reference" else ()
    profiles = {"SPEAKER0": "Ava"} if kind == "profile" else {}
    asked = to_messages(Prompt((*known, Turn(target.text)), profiles=profiles))
    wanted = processor.apply_chat_template(asked, add_generation_prompt=True)["input_ids"][0]
    given = processor.apply_chat_template(trained.messages(), add_generation_prompt=False)["input_ids"][0]
    assert given[: len(wanted)].tolist() == wanted.tolist()


def test_only_the_last_turn_is_trained(samples, processor):
    batch = collate([Dialogue((samples[0], samples[2])), Dialogue((samples[1],), "Joe")], processor)
    for row, target in enumerate((samples[2], samples[1])):
        labels = batch.inputs["audio_labels"][row]
        assert (labels[:, 0] != IGNORED).sum() == target.num_frames + 1
        codes = labels[labels[:, 0] != IGNORED][:-1, 0]
        assert np.array_equal(codes.numpy(), target.codes[0])
        text = batch.inputs["labels"][row]
        assert processor.tokenizer.convert_ids_to_tokens(text[text != IGNORED].tolist()) == [
            "<|audio_out_bos|>",
            "<|audio_eos|>",
            "<|eot_id|>",
        ]
    assert batch.num_frames == samples[2].num_frames + samples[1].num_frames


def test_the_guide_points_from_the_column_before_a_frame_to_the_phone_that_sounds_in_it(samples, processor):
    dialogue = Dialogue((samples[0], samples[2]), "Ava")
    batch = collate([dialogue, Dialogue((samples[1],), "Joe")], processor)
    ids = batch.inputs["input_ids"][0]
    columns = torch.isin(
        ids, torch.tensor(processor.tokenizer.convert_tokens_to_ids(["<|AUDIO_OUT|>", "<|reserved_special_token_6|>"]))
    )
    start = 0
    places = columns.nonzero().squeeze(1)
    for sample in dialogue.turns:
        spoken = phones(sample.text)
        for frame, phone in enumerate(sample.phones):
            position = int(places[start + frame])  # column f of a sound predicts column f + 1, which begins frame f
            seen = processor.tokenizer.convert_ids_to_tokens(int(ids[batch.look[0, position]]))
            assert seen == spoken[phone]
            assert int(batch.phones[0, position]) == phone_ids(spoken[phone])[0]
        start += sample.num_frames + 8 + 1
    assert int((batch.look[0] >= 0).sum()) == samples[0].num_frames + samples[2].num_frames


def test_every_phoneme_of_a_prompt_is_one_token(processor):
    """The guide counts characters: a phoneme joined with its neighbour would shift all after it."""
    for text in TEXTS:
        spoken = phonemize(text)
        assert processor.tokenizer.tokenize(spoken) == list(spoken)


def test_a_reference_is_another_clip_of_the_same_speaker(samples):
    composer = Composer(samples, {"ava": "Ava"}, "ava", ExampleMix(reference=0.5, plain=0.4))
    kinds = Counter()
    for draw in range(300):
        number = draw % len(samples)
        dialogue = composer.compose(number, torch.Generator().manual_seed(draw))
        assert dialogue.turns[-1] is samples[number]
        assert {turn.speaker for turn in dialogue.turns} == {samples[number].speaker}
        assert len({turn.id for turn in dialogue.turns}) == len(dialogue.turns)
        kinds[(samples[number].speaker, min(2, len(dialogue.turns)), dialogue.profile)] += 1
    assert kinds[("joe", 2, None)] == 150, "a speaker without a name is only heard after a reference"
    assert set(kinds) == {("joe", 2, None), ("ava", 2, "Ava"), ("ava", 2, None), ("ava", 1, None), ("ava", 1, "Ava")}
    assert 50 < kinds[("ava", 2, "Ava")] + kinds[("ava", 2, None)] < 100


def test_a_first_turn_is_trained_only_where_the_text_names_its_voice(samples, processor):
    turns = (samples[0], samples[2])
    named, unnamed = (collate([Dialogue(turns, profile)], processor) for profile in ("Ava", None))
    trained = [int((batch.inputs["audio_labels"][..., 0] != IGNORED).sum()) for batch in (named, unnamed)]
    first, last = (sample.num_frames + 1 for sample in turns)  # the frames and one end of stream
    assert trained == [first + last, last]
    assert (named.num_frames, unnamed.num_frames) == (first + last - 2, last - 1)


def test_corruption_touches_a_share_of_the_trained_codes_and_nothing_else(samples, processor):
    batch = collate([Dialogue((samples[0], samples[2]))] * 40, processor)
    columns, labels = batch.inputs["audio_input_ids"], batch.inputs["audio_labels"]
    changed = corrupt(columns, labels, 0.5, range(40), 1024)
    trained = (labels != IGNORED) & (columns < 1024)
    assert torch.equal(changed[~trained], columns[~trained])
    assert bool((changed < 1024)[trained].all())
    assert 0.25 < float((changed != columns)[trained].float().mean()) < 0.45
    assert torch.equal(corrupt(columns, labels, 0.0, range(40), 1024), columns)
    other = corrupt(columns[7:9, :-1], labels[7:9, :-1], 0.5, (7, 8), 1024)
    assert torch.equal(other, changed[7:9, :-1]), "it should not depend on the rest of the batch"


def attention_weights(model, batch, monkeypatch):
    """Of each layer, written out, in a forward pass that a guide watches: `[B, N, T, T]`."""
    seen, written_out = [], higgs_audio.model.layers.eager_attention

    def spy(*args, **options):
        out, weights = written_out(*args, **options)
        seen.append(weights)
        return out, weights

    model.set_attn_implementation("eager")
    monkeypatch.setattr(higgs_audio.model.layers, "eager_attention", spy)
    model(**batch.inputs, only_loss=True)
    return seen


def test_the_guides_attention_is_that_of_the_model(samples, processor, monkeypatch):
    text = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = new_model(LanguageModelRecipe("", "", "", "", text_config=text), processor).train()
    guide = Guide(model, (0, 1), 1, len(PHONES) + 1)
    batch = collate([Dialogue((samples[0], samples[2])), Dialogue((samples[1],), "Joe")], processor)
    seen = attention_weights(model, batch, monkeypatch)
    rows, positions = (batch.look >= 0).nonzero(as_tuple=True)
    targets = batch.look[rows, positions]
    wanted = [-weights[rows, GUIDED_HEAD, positions, targets].log().sum() for weights in seen]
    loss = guide.attention_loss(batch.look)
    assert len(wanted) == 2
    torch.testing.assert_close(loss, torch.stack(wanted).mean(), rtol=1e-4, atol=1e-5)
    guide.close()
    assert not any(layer.self_attn._forward_pre_hooks for layer in model.model.layers)


def test_the_voice_guide_is_the_weight_of_what_the_same_speaker_said_before(samples, processor, monkeypatch):
    text = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = new_model(LanguageModelRecipe("", "", "", "", text_config=text), processor).train()
    guide = Guide(model, (0,), 1, len(PHONES) + 1, voice_layers=(0, 1))
    several = Dialogue((samples[0], samples[1], samples[2], samples[4]), speakers=(0, 1, 1, 0))
    batch = collate([several, Dialogue((samples[1],), "Joe")], processor)
    seen = attention_weights(model, batch, monkeypatch)
    opening = processor.tokenizer.convert_tokens_to_ids("<|audio_out_bos|>")
    starts = (batch.inputs["input_ids"][0] == opening).nonzero().squeeze(1) + 1
    lengths = [turn.num_frames + 9 for turn in several.turns]
    spans = [list(range(start, start + length)) for start, length in zip(starts.tolist(), lengths, strict=True)]
    total = 0.0
    for weights in seen:
        head = weights[0, VOICE_HEAD].detach()
        for turn, past in ((2, 1), (3, 0)):
            total -= sum(float(head[i, spans[past]].sum().log()) for i in spans[turn]) / len(seen)
    assert float(guide.voice_loss(batch.said).detach()) == pytest.approx(total, rel=1e-4)
    assert heard_before(batch.said).sum(1).tolist() == [len(spans[2]) + len(spans[3]), 0]
    guide.close()


def test_the_name_loss_is_the_cross_entropy_of_a_middle_layer_at_the_start_of_turns(samples, processor):
    model = new_model(LanguageModelRecipe("", "", "", "", text_config=TEXT), processor).train()
    guide = Guide(model, (0,), 1, len(PHONES) + 1, name_layer=0, num_speakers=3)
    dialogues = [Dialogue((samples[0], samples[2])), Dialogue((samples[1],), "Joe")]
    batch = collate(dialogues, processor, speakers={"ava": 2, "joe": 1})
    inputs = {name: value for name, value in batch.inputs.items() if "labels" not in name}
    hidden = model.model(**inputs, output_hidden_states=True).hidden_states[1]  # [B, T, D] behind layer 0
    loss, right = guide.name_loss(batch.who)
    logits = guide.name_head(hidden)
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.who.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    assert set(batch.who[batch.who != IGNORED].tolist()) == {1, 2}
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
    assert int(right) == int(((logits.argmax(-1) == batch.who) & (batch.who != IGNORED)).sum())
    loss.backward()
    assert bool(model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0)
    assert model.model.layers[1].self_attn.k_proj.weight.grad is None
    guide.close()


def test_texts_of_the_check_are_the_same_symbols_in_another_order(samples, processor):
    batch = collate([Dialogue((samples[0],), "Ava")], processor)
    changed = with_other_texts(batch).inputs["input_ids"]
    assert not torch.equal(changed, batch.inputs["input_ids"])
    assert torch.equal(changed.sort().values, batch.inputs["input_ids"].sort().values)


def test_the_first_share_of_the_steps_is_on_the_shorter_half_of_the_clips_and_the_rest_on_all(samples):
    order = BatchOrder(positions=250, num_short=20, seed=0)
    composer = Composer(samples, {"ava": "Ava", "joe": "Joe"}, "ava", ExampleMix())

    def asked_for(start):
        batches = itertools.islice(dialogue_batches(composer, samples, order, start), 40 - start)
        return [[dialogue.turns[-1].id for dialogue in batch] for batch in batches]

    whole = asked_for(0)
    sizes = [sample.num_frames + len(sample.phonemes) for sample in samples]
    short = {samples[n].id for n in sorted(range(len(samples)), key=sizes.__getitem__)[:3]}
    assert set(itertools.chain(*whole[:20])) == short
    assert set(itertools.chain(*whole[20:])) == {sample.id for sample in samples}
    for start in (1, 19, 20, 33):
        assert asked_for(start) == whole[start:]


# Losses and steps


def test_spectral_losses_are_zero_for_the_same_sound_and_grow_with_the_difference():
    sound = torch.from_numpy(hum(TEXTS[0])[0])[None]
    assert [float(loss) for loss in spectral_losses(sound, sound, RATE)] == [0, 0]
    noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(0))
    errors = [torch.stack(spectral_losses(sound + level * noise, sound, RATE)) for level in (0.01, 0.1)]
    assert bool((errors[0] > 0).all())
    assert bool((errors[1] > errors[0]).all())


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    rates = [run.learning_rate(step, 100, 1.0, 10, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert all(after < before for before, after in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_anything_changes(poison):
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.5)
    with pytest.raises(NumericsError, match="lower the learning rate"):
        run.apply_gradients((layer(torch.ones(2)) * poison).sum(), layer, optimizer, 0.1, 1.0)
    assert torch.equal(layer.weight, before)


def test_weights_decay_but_norms_biases_and_embeddings_do_not(processor):
    model = new_model(LanguageModelRecipe("", "", "", "", text_config=TEXT), processor)
    decayed, rest = (group["params"] for group in run.decay_groups(model, 0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in rest} == {
        *("embed_tokens", "embed_audio_tokens", "norm"),
        *("input_layernorm", "post_attention_layernorm", "audio_input_layernorm", "audio_post_attention_layernorm"),
    }
    assert len(decayed) + len(rest) == len(names)


def test_samples_use_one_codebook_some_or_all_of_them():
    recipe = tokenizer.TokenizerRecipe("", "", batch=20_000, depth_one=0.2, depth_any=0.4)
    counts = torch.bincount(tokenizer.draw_depth(recipe, torch.Generator().manual_seed(0)), minlength=9) / 20_000
    assert counts[0] == 0
    assert counts[1] == pytest.approx(0.2 + 0.05, abs=0.02)
    assert counts[5] == pytest.approx(0.05, abs=0.02)
    assert counts[8] == pytest.approx(0.4 + 0.05, abs=0.02)


def test_quantizers_are_fitted_as_they_start_and_again_until_a_share_of_the_steps():
    recipe = tokenizer.TokenizerRecipe("", "", num_steps=100, warmup_unquantized=10, refit_every=20, refit_share=0.7)
    assert [step for step in range(99) if tokenizer.is_refit(recipe, step)] == [10, 30, 50]
    unfit = dataclasses.replace(recipe, warmup_unquantized=90)
    assert [step for step in range(99) if tokenizer.is_refit(unfit, step)] == [90]


# Killed and resumed


def assert_same_run(one, other):
    """Two folders hold the same checkpoint, optimizer state and metrics, bit for bit; only the clock differs."""
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    states = [read_state(folder) for folder in (one, other)]
    assert_same(*states)
    assert read_metrics(one) == read_metrics(other)


def read_state(folder):
    """Of the one file, or of the shards."""
    if (folder / "state.pt").exists():
        return torch.load(folder / "state.pt", weights_only=True)
    dcp_to_torch_save(folder / "state", folder / "whole.pt")
    return torch.load(folder / "whole.pt", weights_only=False)


def assert_same(one, other):
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
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "step_seconds"} for line in lines]


def check_resumed(monkeypatch, tmp_path, module, train, recipe, deaths):
    """The run to its end, and the same run killed at each of `deaths` (steps since its start) and started again."""
    train(dataclasses.replace(recipe, output=str(tmp_path / "whole")))
    broken = dataclasses.replace(recipe, output=str(tmp_path / "broken"))
    for step in deaths:
        with monkeypatch.context() as patch:
            kill_at(patch, module, step)
            with pytest.raises(KilledError):
                train(broken)
    train(broken)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def teacher_recipe(corpus, **fields):
    sizes = {"num_steps": 8, "timed_steps": 4, "batch_seconds": 4.0, "warmup": 2, "save_every": 2, "log_every": 2}
    return teacher.TeacherRecipe(str(corpus), "", hubert=HUBERT, **{**sizes, **fields})


def test_a_teacher_killed_twice_and_resumed_equals_one_that_was_not(corpus, tmp_path, monkeypatch):
    """Killed among the clips with known times, and again among all clips."""
    check_resumed(monkeypatch, tmp_path, teacher, teacher.train_teacher, teacher_recipe(corpus), deaths=(4, 4))


def test_a_teacher_without_known_times_resumes_at_the_batch_where_it_was(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path, [(f"clip-{n}", {"text": text}) for n, text in enumerate(TEXTS)])
    check_resumed(monkeypatch, tmp_path, teacher, teacher.train_teacher, teacher_recipe(corpus), deaths=(4,))


@pytest.mark.parametrize("head", ["spectrum", "harmonic"])
@pytest.mark.parametrize("deaths", [(3,), (6, 1)], ids=["as the codebooks start", "later"])
def test_a_tokenizer_killed_and_resumed_equals_one_that_was_not(
    corpus, tiny_teacher, tmp_path, monkeypatch, deaths, head
):
    monkeypatch.setattr(tokenizer, "REVIVE_EVERY", 3)
    recipe = tokenizer.TokenizerRecipe(
        data=str(corpus),
        teacher=str(tiny_teacher),
        output="",
        body=VOCOS | {"decoder_head": head},
        codebook_dim=8,
        num_steps=8,
        batch=4,
        crop_seconds=0.4,
        warmup_unquantized=2,
        refit_every=3,
        refit_share=0.9,
        kmeans_batches=26,  # of 40 vectors: just more than the 1024 entries
        heard_weight=0.5,
        adversarial_weight=0.1,
        adversarial_from=3,
        period_channels=2,
        spectrum_channels=2,
        warmup=2,
        save_every=2,
        log_every=2,
    )
    check_resumed(monkeypatch, tmp_path, workshop, tokenizer.train_tokenizer, recipe, deaths)
    trained = HiggsAudioTokenizer.from_pretrained(tmp_path / "whole" / "model")
    assert all(float(layer.codebook.inited) == 1 for layer in trained.quantizer.layers)
    assert trained.encode(torch.zeros(1, 1, 4800)).audio_codes.shape == (1, 8, 5)


def lm_recipe(prepared, processor_folder, **fields):
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
    paths = {"data": str(prepared), "heldout": str(prepared), "processor": str(processor_folder), "output": ""}
    return LanguageModelRecipe(**{**paths, **sizes, **fields})


def test_a_language_model_killed_and_resumed_equals_one_that_was_not(prepared, tiny_checkpoint, tmp_path, monkeypatch):
    """Killed among the short clips, and again among all of them."""
    recipe = lm_recipe(prepared, tiny_checkpoint, num_steps=8, batch_positions=400, short_share=0.5)
    check_resumed(monkeypatch, tmp_path, lm, lm.train_language_model, recipe, deaths=(4, 4))


def test_a_run_killed_by_the_system_at_any_step_ends_with_the_same_bits(prepared, tiny_checkpoint, tmp_path):
    """kill -9 of the command, at a step that differs from run to run, and the same command again."""
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        recipe = lm_recipe(
            prepared, tiny_checkpoint, output=str(folder), num_steps=60, batch_positions=400, log_every=1
        )
        save_recipe(recipe, tmp_path / f"{folder.name}.yaml")
    command = [sys.executable, "-m", "higgs_audio", "train", "lm"]
    last = random.randint(1, 40)
    with subprocess.Popen([*command, tmp_path / "killed.yaml"], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (steps_of(folders[1]) and steps_of(folders[1])[-1] >= last):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert steps_of(folders[1])[-1] < 60
    for folder in folders:
        subprocess.run([*command, tmp_path / f"{folder.name}.yaml"], check=True, capture_output=True)
    whole, killed = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert all(np.array_equal(whole[name], killed[name]) for name in whole), f"killed at step {last}"
    assert steps_of(folders[1]) == steps_of(folders[0])


def steps_of(folder):
    """Numbers of the steps in a run's metrics so far; a line that is being written is passed over."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def tiny_run(folder, parts):
    """A folder with the state of step 3 and a recipe."""
    run.Run(folder).save(3, parts)
    (folder / "recipe.yaml").write_text("seed: 7\n")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def layer_and_optimizer(*sizes):
    layer = torch.nn.Linear(*sizes)
    return {"model": layer, "optimizer": torch.optim.AdamW(run.decay_groups(layer, 0.1))}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: {**parts, "model": torch.nn.Linear(3, 2)}, r"model weight is \[3, 3\] there and \[2, 3\] here"),
        (lambda parts: {**parts, "model": torch.nn.Linear(3, 3, bias=False)}, "model bias is only there"),
        (lambda parts: {**parts, "judges": torch.nn.Linear(1, 1)}, "judges is only here"),
        (lambda parts: {"model": parts["model"]}, "optimizer is only there"),
        (
            lambda parts: {**parts, "optimizer": torch.optim.AdamW(parts["model"].parameters())},
            "optimizer group 1 is only there",
        ),
    ],
    ids=["another size", "another layer", "a part more", "a part fewer", "other groups"],
)
def test_the_state_of_another_recipes_run_is_not_resumed(tmp_path, change, said):
    """It was an error of torch, after the recipe in the folder had been overwritten."""
    tiny_run(tmp_path, layer_and_optimizer(3, 3))
    parts = change(layer_and_optimizer(3, 3))
    before = {name: value.clone() for name, value in parts["model"].state_dict().items()}
    with pytest.raises(RecipeError, match=f"another recipe's run: {said}"):
        run.Run(tmp_path).resume(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts["model"].state_dict().items())


def test_a_state_that_cannot_be_read_says_which_file(tmp_path):
    parts = layer_and_optimizer(3, 3)
    tiny_run(tmp_path, parts)
    whole = (tmp_path / "state.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nothing of the kind"):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.pt' cannot be read"):
            run.Run(tmp_path).resume(parts)
    torch.save([1], tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="not the state of a run"):
        run.Run(tmp_path).resume(parts)


def test_a_full_disk_stops_a_run_with_the_state_before_whole(tmp_path, monkeypatch):
    parts = layer_and_optimizer(3, 3)
    before = tiny_run(tmp_path, parts)

    def half(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.torch, "save", half)
    with pytest.raises(CheckpointError, match=r"step 4 cannot be saved .* No space left"):
        run.Run(tmp_path).save(4, parts)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"guide_layers": (0, 2)}, "guide_layers names layer 2; the model has the layers 0 to 1"),
        ({"guide_layers": (-1,)}, "guide_layers names layer -1"),
        ({"guide_layers": ("0",)}, "guide_layers names layer 0"),
        ({"guide_layers": ()}, "guide_layers names no layer"),
        ({"phone_layer": 2}, "phone_layer names layer 2; the model has the layers 0 to 1"),
        ({"codebook_weights": (1.0,) * 7}, "codebook_weights has 7 numbers and the model 8"),
        ({"codebook_weights": (0.0,) * 8}, "one of them above 0"),
        ({"codebook_weights": (1.0,) * 7 + (-1.0,)}, "must be 0 or more"),
        ({"reference_frames": (3,)}, "least and the most"),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_fit_its_model_is_refused_before_anything_is_written(
    prepared, tiny_checkpoint, tmp_path, fields, said
):
    recipe = lm_recipe(prepared, tiny_checkpoint, **{**fields, "output": str(tmp_path / "run")})
    with pytest.raises(RecipeError, match=said):
        lm.train_language_model(recipe)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_recipes_run_is_left_as_it_is(corpus, tmp_path):
    before = tiny_run(tmp_path, layer_and_optimizer(3, 3))
    with pytest.raises(RecipeError, match="another recipe's run"):
        teacher.train_teacher(dataclasses.replace(teacher_recipe(corpus), output=str(tmp_path)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("sizes", [{"audio_num_codebooks": 4}, {"audio_codebook_size": 512}], ids=str)
def test_a_checkpoint_of_another_architecture_is_no_start(prepared, tiny_checkpoint, processor, tmp_path, sizes):
    """It was loaded, and failed in the first step inside the model."""
    config = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint).config.to_dict()
    size = sizes.get("audio_codebook_size", 1024)
    ids = {"audio_stream_bos_id": size, "audio_stream_eos_id": size + 1}
    other = HiggsAudioForConditionalGeneration(HiggsAudioConfig(**{**config, **sizes, **ids}))
    other.save_pretrained(tmp_path / "start")
    recipe = lm_recipe(prepared, tiny_checkpoint, start=str(tmp_path / "start"), output=str(tmp_path / "run"))
    with pytest.raises(RecipeError, match="and the processor 8 of 1024"):
        lm.train_language_model(recipe)
    assert not (tmp_path / "run").exists()


def test_two_runs_from_a_checkpoint_begin_alike(prepared, tiny_checkpoint, tmp_path):
    """The heads of the guide were drawn from torch's global generator, so that no two processes trained alike."""
    results = []
    for number in range(2):
        torch.manual_seed(number)
        output = str(tmp_path / str(number))
        recipe = lm_recipe(prepared, tiny_checkpoint, start=str(tiny_checkpoint), output=output, num_steps=2)
        results.append(load_file(lm.train_language_model(recipe) / "model.safetensors"))
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


def test_a_run_killed_while_it_saves_keeps_the_state_before(tmp_path, monkeypatch):
    layer = torch.nn.Linear(3, 3)
    first = layer.weight.detach().clone()
    state = run.Run(tmp_path)
    state.save(1, {"model": layer})
    torch.nn.init.zeros_(layer.weight)

    def die(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(run.os, "replace", die)
        with pytest.raises(KilledError):
            state.save(2, {"model": layer})
    assert run.Run(tmp_path).resume({"model": layer}) == 1
    assert torch.equal(layer.weight, first)


def test_a_resumed_run_drops_the_metrics_of_steps_that_it_does_again(tmp_path):
    state = run.Run(tmp_path, log_every=1)
    layer = torch.nn.Linear(1, 1)
    for step in (1, 2, 3):
        state.log(step, {"loss": step})
        if step == 2:
            state.save(step, {"model": layer})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 4, "lo')  # killed within a line
    assert run.Run(tmp_path).resume({"model": layer}) == 2
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_the_randomness_of_a_step_depends_on_seed_and_step_alone():
    def draw(seed, step):
        generator = run.seed_step(seed, step)
        return torch.rand(3).tolist() + torch.rand(3, generator=generator).tolist()

    first = draw(0, 5)
    torch.rand(7)
    assert draw(0, 5) == first
    assert draw(0, 6) != first
    assert draw(1, 5) != first


# Learning by heart


def random_clips(texts):
    """Texts with random codes of 5 to 9 frames, and the phone heard in each."""
    rng = np.random.default_rng(0)
    clips = []
    for text in texts:
        num_frames = int(rng.integers(5, 10))
        heard = np.linspace(0, len(phones(text)) - 1, num_frames).astype(int)
        clips.append((text, rng.integers(0, 1024, (8, num_frames)), heard))
    return clips


BY_HEART = {
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


def spoken_codes(model, processor, text):
    """What the model answers to a text, greedily: codes, and how it ended."""
    messages = to_messages(Prompt((Turn(text),), profiles={"SPEAKER0": "Ava"}))
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, output_labels=False)
    output = generate(model, **inputs, do_sample=False, max_new_tokens=40)
    (segment,) = output.audio_sequences[0]
    return revert_delay(segment).numpy(), output.finish_reasons[0]


def test_a_tiny_model_learns_32_clips_by_heart_and_speaks_them_again_code_by_code(tiny_checkpoint, processor, tmp_path):
    """The whole way: prepared clips, prompts, delay, labels, loss, checkpoint, prompt, generation, reverted delay."""
    clips = random_clips([sentence.text for sentence in heldout_sentences(limit=32).sentences])
    data = write_samples(tmp_path, clips)
    recipe = lm_recipe(
        data,
        tiny_checkpoint,
        output=str(tmp_path / "run"),
        text_config={**TEXT, "hidden_size": 96, "intermediate_size": 144, "num_attention_heads": 4},
        num_steps=180,
        batch_positions=1600,
        guide_weight=0.1,
        peak_rate=6e-3,
        final_rate=6e-4,
        warmup=20,
        **BY_HEART,
    )
    model = HiggsAudioForConditionalGeneration.from_pretrained(lm.train_language_model(recipe)).eval()
    assert read_metrics(tmp_path / "run")[-1]["heldout"] < 0.01
    for text, codes, _ in clips:  # nothing but the text tells one prompt from another
        spoken, reason = spoken_codes(model, processor, text)
        assert np.array_equal(spoken, codes)
        assert reason == "stop"


# New tokens


@pytest.fixture
def plain_checkpoint(tiny_checkpoint, tmp_path):
    """The tiny checkpoint with a processor that leaves texts as they are."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_checkpoint, folder)
    own = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    HiggsAudioProcessor(own.tokenizer, own.audio_tokenizer, text_frontend="none").save_pretrained(folder)
    return folder


def test_a_model_learns_what_new_tokens_mean_and_its_checkpoint_reads_them(plain_checkpoint, tmp_path):
    """Two clips whose texts differ in nothing but the new token."""
    before = len(HiggsAudioProcessor.from_pretrained(plain_checkpoint).tokenizer)
    clips = random_clips(["[whisper] Hello there.", "[shout] Hello there."])
    data = tmp_path / "data"
    data.mkdir()
    recipe = lm_recipe(
        write_samples(data, clips),
        plain_checkpoint,
        start=str(plain_checkpoint),
        new_tokens=("[whisper]", "[shout]"),
        output=str(tmp_path / "run"),
        num_steps=80,
        batch_positions=400,
        guide_weight=0.0,
        phone_weight=0.0,
        peak_rate=1e-2,
        final_rate=1e-3,
        **BY_HEART,
    )
    folder = lm.train_language_model(recipe)
    model = HiggsAudioForConditionalGeneration.from_pretrained(folder).eval()
    processor = HiggsAudioProcessor.from_pretrained(folder)
    assert len(processor.tokenizer) == before + 2 == model.config.text_config.vocab_size
    assert len(processor.tokenizer("[whisper]", add_special_tokens=False)["input_ids"]) == 1
    for text, codes, _ in clips:
        assert np.array_equal(spoken_codes(model, processor, text)[0], codes)
    again = dataclasses.replace(
        recipe, start=str(folder), processor=str(folder), output=str(tmp_path / "again"), num_steps=1
    )
    grown = HiggsAudioForConditionalGeneration.from_pretrained(lm.train_language_model(again))
    assert grown.config.text_config.vocab_size == before + 2  # they are there already


def test_a_grown_vocabulary_keeps_its_rows_and_begins_new_ones_at_their_mean(plain_checkpoint):
    model = HiggsAudioForConditionalGeneration.from_pretrained(plain_checkpoint)
    table, head = (weight.detach().clone() for weight in (model.model.embed_tokens.weight, model.text_lm_head.weight))
    grow_vocabulary(model, len(table) + 2)
    for old, new in ((table, model.model.embed_tokens.weight), (head, model.text_lm_head.weight)):
        assert torch.equal(new[:-2], old)
        assert torch.allclose(new[-2:], old.mean(0).expand(2, -1))


@pytest.mark.parametrize(
    ("tokens", "fields", "message"),
    [
        (("<|eot_id|>",), {}, "in a shape that texts may hold"),
        (("[a]", "[a]"), {}, "give each once"),
        ((" ",), {}, "' '; give each once"),
        (("[a]",), {"train": ("audio",)}, r"\['\[a\]'\] are not trained"),
    ],
)
def test_new_tokens_that_cannot_be_learned_are_refused(plain_checkpoint, tmp_path, tokens, fields, message):
    data = write_samples(tmp_path, random_clips(["Hello there."]))
    recipe = lm_recipe(data, plain_checkpoint, output=str(tmp_path / "run"), new_tokens=tokens, **fields)
    with pytest.raises(RecipeError, match=message):
        lm.train_language_model(recipe)


def test_a_processor_that_spells_phonemes_takes_no_new_tokens(tiny_checkpoint, tmp_path):
    data = write_samples(tmp_path, random_clips(["Hello there."]))
    recipe = lm_recipe(data, tiny_checkpoint, output=str(tmp_path / "run"), new_tokens=("[a]",))
    with pytest.raises(RecipeError, match="turns texts into phonemes"):
        lm.train_language_model(recipe)


def test_a_text_of_more_phones_than_a_byte_counts_is_aligned():
    """Its states are numbered past 127, where the difference of a Python int and an int8 overflowed."""
    ids = [1 + n % 5 for n in range(150)]
    log_probs = np.full((300, 7), -9.0)
    log_probs[np.arange(0, 300, 2), ids] = 0.0
    log_probs[1::2, 0] = 0.0
    path, total = viterbi(log_probs, ids)
    assert total == 0.0
    assert path[::2].tolist() == list(range(150))
    assert (path[1::2] == -1).all()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").rglob("*tokenizer*.yaml")), ids=str)
def test_every_tokenizer_recipe_of_the_repository_is_read(path):
    assert load_recipe(path, tokenizer.TokenizerRecipe).num_steps >= 1000


def tokenizer_recipe(corpus, output, **changes):
    sizes = {"body": VOCOS, "codebook_dim": 8, "batch": 4, "crop_seconds": 0.4, "kmeans_batches": 26}
    steps = {"num_steps": 4, "warmup_unquantized": 1, "warmup": 1, "save_every": 2, "log_every": 2}
    return tokenizer.TokenizerRecipe(str(corpus), str(output), **{**sizes, **steps, **changes})


@pytest.fixture(params=["spectrum", "harmonic"])
def decoder_recipe(request, corpus, tiny_teacher, tmp_path):
    body = VOCOS | {"decoder_head": request.param}
    whole = tokenizer_recipe(corpus, tmp_path / "start", teacher=str(tiny_teacher), body=body)
    changes = {"start": str(tokenizer.train_tokenizer(whole)), "decoder_only": True, "heard_weight": 0.5}
    return tokenizer_recipe(corpus, tmp_path / "decoder", **changes)


def test_a_decoder_killed_and_resumed_equals_one_that_was_not(decoder_recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(decoder_recipe, num_steps=6, adversarial_weight=0.1)
    check_resumed(monkeypatch, tmp_path, workshop, tokenizer.train_tokenizer, recipe, deaths=(3, 1))


def test_crops_of_coded_clips_are_their_own_sound_codes_and_pitch(decoder_recipe):
    """A code shifted by one frame would be heard as a blur, much later."""
    codec = HiggsAudioTokenizer.from_pretrained(decoder_recipe.start)
    clips = read_manifests(decoder_recipe.data, "train")
    crops = decoder.CodedClips(clips, codec, decoder_recipe).crops(3, torch.Generator().manual_seed(0))
    coded = decoder.CodedClips(clips, codec, decoder_recipe)
    whole = [coded._coded(number) for number in range(len(clips))]
    for row in range(3):
        num_frames, found = crops.codes.shape[2], 0
        for clip in whole:
            for first in range(clip.codes.shape[2] - num_frames + 1):
                sound = clip.sound[0, 960 * first : 960 * (first + num_frames)]
                if torch.equal(to_short(crops.sound[row]), sound):
                    found += 1
                    assert torch.equal(crops.codes[row], clip.codes[0, :, first : first + num_frames].long())
                    if crops.pitch is not None:
                        hz = clip.pitch.hz[0, 4 * first : 4 * (first + num_frames)]
                        assert torch.equal(crops.pitch.hz[row], hz)
        assert found == 1
    with pytest.raises(RecipeError, match="no clip is longer than crop_seconds=100"):
        decoder.CodedClips(clips, codec, dataclasses.replace(decoder_recipe, crop_seconds=100.0))


def test_clips_too_short_for_a_crop_are_told_and_lengths_that_lie_are_named(decoder_recipe, capsys):
    codec = HiggsAudioTokenizer.from_pretrained(decoder_recipe.start)
    clips = read_manifests(decoder_recipe.data, "train")
    brief = dataclasses.replace(clips[0], seconds=0.1)
    coded = decoder.CodedClips([brief, *clips], codec, decoder_recipe)
    assert coded.crops(2, torch.Generator().manual_seed(0)).codes.shape[0] == 2
    assert f"1 of {len(clips) + 1} clips are shorter than a crop" in capsys.readouterr().err
    lying = [dataclasses.replace(clip, seconds=100.0) for clip in clips]
    long = dataclasses.replace(decoder_recipe, crop_seconds=50.0)
    with pytest.raises(RecipeError, match=r"frames, and its manifest says 100\.0 s"):
        decoder.CodedClips(lying, codec, long).crops(1, torch.Generator().manual_seed(0))


def test_the_decoder_alone_learns_another_sound_for_the_same_codes(decoder_recipe):
    whole, recipe = decoder_recipe.start, decoder_recipe
    before, after = map(HiggsAudioTokenizer.from_pretrained, (whole, tokenizer.train_tokenizer(recipe)))
    waveform = 0.1 * torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(0))
    codes = before.encode(waveform).audio_codes
    assert torch.equal(after.encode(waveform).audio_codes, codes)
    assert not torch.equal(after.decode(codes).audio_values, before.decode(codes).audio_values)
    learned = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert learned and all(name.startswith(("acoustic_decoder.", "fc2.")) for name in learned)


@pytest.mark.parametrize(
    "changes",
    [{}, {"start": "a", "teacher": "b"}, {"teacher": "b", "decoder_only": True}],
    ids=["neither", "both", "a new decoder alone"],
)
def test_a_tokenizer_starts_from_a_teacher_or_from_a_tokenizer(tmp_path, changes):
    with pytest.raises(RecipeError, match="give a teacher for a new tokenizer, or the start"):
        tokenizer.first_tokenizer(tokenizer_recipe("corpus", tmp_path, **changes))


def test_without_its_semantic_branch_a_tokenizer_codes_sound_alone(corpus, tiny_teacher, tmp_path):
    alone = {"semantic_branch": False, "semantic_weight": 0.0, "first_weight": 0.0, "acoustic_share": 1.0}
    for changes, hears in (({}, True), (alone, False)):
        recipe = tokenizer_recipe(corpus, tmp_path / str(hears), teacher=str(tiny_teacher), num_steps=6, **changes)
        trained = HiggsAudioTokenizer.from_pretrained(tokenizer.train_tokenizer(recipe))
        features = torch.randn(1, trained.config.semantic.hidden_size, 5, generator=torch.Generator().manual_seed(0))
        assert bool(trained.encoder_semantic(features).abs().sum() > 0) is hears
