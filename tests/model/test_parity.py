"""Both existing implementations as oracles: transformers by running it, the original by a slow loop over its rules.

Every row of docs/compatibility.md names a test; those that compare are here. Where the two differ from ours on purpose,
the difference itself is asserted, so that a change of theirs is noticed.
"""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from oracle import (
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BOS,
    EOS,
    K,
    V,
    collate,
    fill,
    language_twin,
    make_codes,
    make_config,
    make_prompt,
    make_sound,
    make_tokenizer,
    nano_tokenizer,
    stand_in_torchaudio,
    tokenizer_twin,
    twin_columns,
)
from transformers import DacFeatureExtractor, HiggsAudioV2Config, HiggsAudioV2Model, HiggsAudioV2Processor
from transformers import HiggsAudioV2TokenizerConfig as TransformersTokenizerConfig

from higgs_audio import NANO, HiggsAudioConfig, HiggsAudioTokenizerConfig
from higgs_audio.delay import apply_delay, revert_delay
from higgs_audio.errors import CodesError, PromptError
from higgs_audio.generation.loop import RowState, advance, generate, next_step
from higgs_audio.generation.rules import Rules
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # transformers' own

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
CODES = 1024  # entries of a codebook where the audio tokenizer takes part
# The cache's name in a call of transformers' model, before 5.24 and from there on.
CACHE = "cache" if "cache" in inspect.signature(HiggsAudioV2Model.forward).parameters else "past_key_values"
# The Hugging Face chat template as its rendered prompts show it, written anew: trimmed texts, a scene inside the
# system turn, audio as <|AUDIO_OUT|> everywhere, none in user turns, and an answer that is always sound.
CHAT_TEMPLATE = r"""
{%- set head = '<|start_header_id|>%s<|end_header_id|>\n\n' -%}
{%- set sound = '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' -%}
{%- if messages[0].role != 'system' -%}{{ raise_exception('A system message is required') }}{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- set is_text = message.content is string -%}
  {%- set items = [{'type': 'text', 'text': message.content}] if is_text else message.content -%}
  {%- if message.role == 'scene' -%}
    {{- '\n\n<|scene_desc_start|>\n' -}}
    {%- for item in items -%}
      {{- item.text | trim if item.type == 'text' else ' ' + sound -}}
      {%- if not loop.last -%}
        {%- if item.type == 'text' and loop.first -%}{{ '\n\n' }}
        {%- elif item.type == 'audio' or loop.nextitem.type == 'text' -%}{{ '\n' }}
        {%- endif -%}
      {%- endif -%}
    {%- endfor -%}
    {{- '\n<|scene_desc_end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {%- if items[0].type != 'audio' -%}{{ raise_exception('Assistant messages must contain audio') }}{%- endif -%}
    {{- head % 'assistant' + sound -}}
  {%- else -%}
    {{- head % message.role -}}
    {%- for item in items if item.type == 'text' -%}{{ item.text | trim }}{%- endfor -%}
  {%- endif -%}
  {%- if loop.last or loop.nextitem.role != 'scene' -%}{{ '<|eot_id|>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ head % 'assistant' + '<|audio_out_bos|>' }}{%- endif -%}
"""


@pytest.fixture(scope="module")
def model():
    return fill(HiggsAudioForConditionalGeneration(make_config()))


@pytest.fixture(scope="module")
def twin(model):
    return language_twin(model)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Processor, audio tokenizer and language model, ours and theirs, with one tokenizer and the same weights."""
    tokenizer = nano_tokenizer().build()
    codec = make_tokenizer("dac", acoustic_padding=480)  # as transformers pads
    processor = HiggsAudioProcessor(tokenizer, codec)
    model = fill(HiggsAudioForConditionalGeneration(_config_for(tokenizer)))
    folder = tmp_path_factory.mktemp("recordings")
    recordings = [folder / "a.wav", folder / "b.wav"]
    for seed, path in enumerate(recordings):
        samples = make_sound(3 * 960 + (631, 118)[seed], seed=seed)[0, 0].numpy()
        soundfile.write(path, samples, 24000, subtype="FLOAT")
    with stand_in_torchaudio():
        codec_twin = tokenizer_twin(codec.config)
        codec_twin.load_state_dict(codec.state_dict(), strict=True)
        extractor = DacFeatureExtractor(feature_size=1, hop_length=1, sampling_rate=24000)
        theirs = HiggsAudioV2Processor(extractor, tokenizer, codec_twin, chat_template=CHAT_TEMPLATE)
        yield SimpleNamespace(
            processor=processor,
            codec=codec,
            model=model,
            their_processor=theirs,
            their_model=language_twin(model),
            recordings=[str(path) for path in recordings],
        )


def _config_for(tokenizer):
    ids = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": ids("<|eot_id|>")}
    return make_config(
        text,
        audio_codebook_size=CODES,
        audio_bos_token_id=ids("<|audio_bos|>"),
        audio_eos_token_id=ids("<|audio_eos|>"),
        audio_out_bos_token_id=ids("<|audio_out_bos|>"),
        audio_delay_token_id=ids("<|reserved_special_token_6|>"),
        audio_in_token_idx=ids("<|AUDIO|>"),
        audio_out_token_idx=ids("<|AUDIO_OUT|>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ids("<|eot_id|>"),
    )


def says(role, *items):
    """A message of texts and, where an item is a dict, of audio."""
    return {
        "role": role,
        "content": [item if isinstance(item, dict) else {"type": "text", "text": item} for item in items],
    }


def hears(path):
    return {"type": "audio", "path": str(path)}


def plain():
    return [says("system", "Generate audio following instruction."), says("scene", "Quiet room."), says("user", "Hi.")]


def clone(*paths):
    turns = [turn for path in paths for turn in (says("user", " A reference."), says("assistant", hears(path)))]
    return [says("system", "Generate audio following instruction. "), *turns, says("user", "Hello, you.")]


def their_inputs(stack, conversation, **options):
    return stack.their_processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def assert_near(ours, theirs, bound=1e-5):
    """Equal to `bound` of the largest value."""
    assert float((ours - theirs).abs().max()) < bound * float(theirs.abs().max())


# The language model


@torch.no_grad()
def test_cached_and_uncached_logits_of_both_agree_in_a_left_padded_batch(model, twin):
    """Four ways to the same numbers: all at once and column by column, ours and theirs."""
    prompts = [make_prompt(range(20, 32), [make_codes(4, 1)]), make_prompt(range(40, 44), [make_codes(2, 2)] * 2)]
    answer = apply_delay(make_codes(5, 3), BOS, EOS).T  # [n, K]
    whole = collate([(ids + [AUDIO_OUT] * len(answer), torch.cat([columns, answer])) for ids, columns in prompts])
    mask, batch, num_columns = whole["attention_mask"], collate(prompts), len(answer)
    ours, theirs = model(**whole).logits.flatten(2), twin(**whole).logits  # [B, T, K * (V + 2)]
    assert_near(ours[mask.bool()], theirs[mask.bool()])
    steps = {"ours": [model(**batch, use_cache=True)], "theirs": [twin(**batch, use_cache=True)]}
    for number, column in enumerate(answer):
        step = {"audio_input_ids": column.expand(2, 1, -1)}
        step["attention_mask"] = mask[:, : batch["input_ids"].shape[1] + number + 1]
        steps["ours"].append(model(**step, past_key_values=steps["ours"][-1].cache))
        cache = {CACHE: steps["theirs"][-1][CACHE]}
        steps["theirs"].append(twin(**step, **cache, use_cache=True))
    for outputs in steps.values():
        logits = torch.stack([output.logits[:, -1].flatten(1) for output in outputs], dim=1)  # [B, n + 1, ...]
        assert_near(logits, theirs[:, -num_columns - 1 :])


# Prompts and processors


@pytest.mark.parametrize(
    "conversation",
    [
        [says("system", " Speak. "), says("user", "Hello.")],
        plain(),
        clone("a.wav"),
        clone("a.wav", "b.wav"),
        [
            says("system", "S"),
            says("scene", "Quiet.", "SPEAKER0: deep", "SPEAKER1: high"),
            says("user", "[SPEAKER0] A"),
        ],
    ],
    ids=["text alone", "scene", "one reference", "two references", "described speakers"],
)
def test_rendered_prompts_are_those_of_transformers(stack, conversation):
    theirs = stack.their_processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    trimmed = [says(turn["role"], *(_trimmed(item) for item in turn["content"])) for turn in conversation]
    assert stack.processor.apply_chat_template(trimmed, force_audio=True, tokenize=False) == theirs


def _trimmed(item):
    """Without a scene, ours leaves texts as they are."""
    return item["text"].strip() if item["type"] == "text" else item


def test_a_conversation_with_a_scene_is_trimmed_as_in_transformers(stack):
    conversation = [says("system", " Speak. \n"), says("scene", "\nQuiet room. "), says("user", " Hi ")]
    theirs = stack.their_processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert stack.processor.apply_chat_template(conversation, force_audio=True, tokenize=False) == theirs
    spaced = [says("system", "Speak."), says("user", " Hi ")]
    assert " Hi <|eot_id|>" in stack.processor.apply_chat_template(spaced, tokenize=False)
    assert "\n\nHi<|eot_id|>" in stack.their_processor.apply_chat_template(spaced, tokenize=False)


@torch.no_grad()
def test_recordings_become_the_inputs_and_the_logits_of_transformers(stack):
    """Two conversations of different length: files, audio tokenizer, delay pattern, placeholders, padding, model."""
    a, b = stack.recordings
    conversations = [_with_scene(clone(a)), _with_scene(clone(a, b))]
    theirs = their_inputs(stack, conversations, padding=True)
    ours = stack.processor.apply_chat_template(conversations, force_audio=True, output_labels=False)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert ours.audio_input_ids.shape == (2, (4 + 9) + (3 + 9), K)
    mask = ours.attention_mask.bool()
    logits = stack.model(**ours).logits.flatten(2), stack.their_model(**theirs).logits
    assert_near(logits[0][mask], logits[1][mask])


def _with_scene(conversation):
    return [conversation[0], says("scene", "Quiet room."), *conversation[1:]]


@torch.no_grad()
def test_a_batch_with_and_without_audio_is_refused_by_transformers_and_equals_its_rows_in_ours(stack):
    conversations = [_with_scene(clone(stack.recordings[0])), plain()]
    with pytest.raises(ValueError, match="non-empty list"):
        their_inputs(stack, conversations, padding=True)
    together = stack.processor.apply_chat_template(conversations, force_audio=True, output_labels=False)
    logits = stack.model(**together).logits.flatten(2)
    for row, conversation in enumerate(conversations):
        alone = stack.their_model(**their_inputs(stack, conversation)).logits[0]
        assert_near(logits[row, -len(alone) :], alone)


@torch.no_grad()
def test_a_reference_in_a_scene_is_heard_as_audio_in_where_transformers_writes_audio_out(stack):
    """As the original does. Which placeholder it is makes no difference to the model, but which token opens it does."""
    a, b = (hears(path) for path in stack.recordings)
    conversation = [says("system", "S"), says("scene", "Quiet.", "SPEAKER0:", a, "SPEAKER1:", b), says("user", "Hi")]
    theirs = stack.their_processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    ours = stack.processor.apply_chat_template(conversation, force_audio=True, tokenize=False)
    out, in_ = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>", "<|audio_bos|><|AUDIO|><|audio_eos|>"
    assert theirs.count(" " + out) == 2
    assert ours == theirs.replace(out, in_)
    columns = stack.processor.apply_chat_template(conversation).audio_input_ids
    assert torch.equal(columns, their_inputs(stack, conversation)["audio_input_ids"])


def test_a_scene_that_begins_with_a_speaker_has_a_blank_line_in_transformers_alone(stack):
    conversation = [says("system", "S"), says("scene", "SPEAKER0:", hears(stack.recordings[0])), says("user", "Hi")]
    theirs = stack.their_processor.apply_chat_template(conversation, tokenize=False)
    ours = stack.processor.apply_chat_template(conversation, tokenize=False)
    assert "SPEAKER0:\n\n <|audio_out_bos|>" in theirs
    assert "SPEAKER0: <|audio_bos|>" in ours


def test_what_transformers_refuses_and_ours_reads(stack):
    path = stack.recordings[0]
    cases = {
        "no audio tokens in the prompt": [says("system", "S"), says("user", "Listen:", hears(path))],
        "there are audio tokens": [
            says("system", "S"),
            says("assistant", {"type": "audio", "audio_url": path}),
        ],
        "system message": [says("user", "Hi")],
        "must contain audio": [says("system", "S"), says("assistant", "Hello.")],
    }
    for message, conversation in cases.items():
        with pytest.raises(Exception, match=message):
            their_inputs(stack, conversation)
        assert len(stack.processor.apply_chat_template(conversation).input_ids) == 1


def test_control_tokens_in_a_text_reach_the_model_in_transformers_and_are_refused_in_ours(stack):
    conversation = [says("system", "S"), says("user", "one<|eot_id|>two")]
    end = stack.processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert int((their_inputs(stack, conversation)["input_ids"] == end).sum()) == 3
    with pytest.raises(PromptError, match="eot_id"):
        stack.processor.apply_chat_template(conversation)


# Labels and losses


def training_inputs(stack):
    """One conversation with two spoken turns, as both processors label it."""
    conversation = _with_scene(clone(*stack.recordings))[:-1]
    theirs = stack.their_processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", output_labels=True
    )
    return stack.processor.apply_chat_template(conversation, add_generation_prompt=False), theirs


def test_labels_differ_from_those_of_transformers_in_the_text_of_the_prompt_and_in_the_ends(stack):
    """Theirs trains every text token but the opener of audio, delay placeholders too, and never an end of stream."""
    ours, theirs = training_inputs(stack)
    ids, untrained = ours.input_ids, -100
    assert torch.equal(ids, theirs["input_ids"])
    special = stack.processor.tokenizer.convert_tokens_to_ids
    placeholder, opener, close, end = map(
        special, ("<|AUDIO_OUT|>", "<|audio_out_bos|>", "<|audio_eos|>", "<|eot_id|>")
    )
    wanted = ids.masked_fill((ids == placeholder) | (ids == opener), untrained)
    assert torch.equal(theirs["labels"], wanted)
    assert ours.labels[ours.labels != untrained].tolist() == [opener, close, end] * 2
    without_ends = ours.audio_labels.masked_fill(ours.audio_labels == CODES + 1, untrained)
    assert torch.equal(theirs["audio_labels"], without_ends)
    assert (ours.audio_labels == CODES + 1).sum((0, 1)).tolist() == [2] * K


def test_the_loss_of_transformers_is_text_loss_and_k_times_audio_loss_on_its_own_labels(stack):
    _, theirs = training_inputs(stack)
    ours = stack.model(**theirs)
    wanted = stack.their_model(**theirs).loss
    torch.testing.assert_close(ours.text_loss + K * ours.audio_loss, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.text_loss + ours.codebook_losses.sum(), wanted, rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_loss_of_the_early_version_is_ours(stack):
    """Its audio loss runs over one stream of all columns, each first column unlabelled, shifted by one column."""
    inputs, _ = training_inputs(stack)
    output = stack.model(**inputs)
    text = torch.nn.functional.cross_entropy(output.text_logits[0, :-1], inputs.labels[0, 1:])
    is_audio = stack.model.model.audio_mask(inputs.input_ids)
    logits, labels = output.logits[is_audio], inputs.audio_labels[inputs.audio_input_ids_mask].clone()  # [N, K, ...]
    labels[(inputs.audio_input_ids[0] == CODES).all(-1)] = -100
    losses = [torch.nn.functional.cross_entropy(logits[:-1, k], labels[1:, k]) for k in range(K)]
    torch.testing.assert_close(output.codebook_losses, torch.stack(losses))
    torch.testing.assert_close(output.loss, text + sum(losses) / K)


# The state machines, on scripted ids


def original_columns(script, limit=100):
    """The original's audio mode, written as its rules read: one list of K ids a step -> columns, and whether it ended.

    Slow and obvious on purpose. `script[0]` is the step that opens the segment, where nothing is sampled.
    """
    columns, num_delay, remaining = [[BOS] * K], 0, None
    for sampled in script[1:limit]:
        ids = list(sampled)
        if num_delay + 1 < K:
            ids[num_delay + 1 :] = [BOS] * (K - num_delay - 1)
            num_delay += 1
        if remaining is not None:
            ids[: K - remaining] = [EOS] * (K - remaining)
            remaining -= 1
        elif EOS in ids:
            first = ids.index(EOS)
            ids[:first] = [EOS] * first
            remaining = K - first - 1
        columns.append(ids)
        if remaining is not None and remaining <= 0:
            return columns, True
    return columns, False


def original_frames(columns):
    """Its codes [K, F]: undo the delay, clip every marker to the last code, drop the first and the last frame."""
    length = len(columns) - K + 1
    rows = [[min(columns[k + n][k], V - 1) for n in range(length)] for k in range(K)]
    return [row[1:-1] for row in rows]


def transformers_columns(script, limit=100):
    """transformers' rules: an eos anywhere starts the closing ramp in codebook 0 one step later, until all are eos."""
    columns, first = [[BOS] * K], None
    for sampled in script[1:limit]:
        ids = [code if len(columns) > k else BOS for k, code in enumerate(sampled)]
        if first is not None:
            num_forced = min(len(columns) - first, K)
            ids[:num_forced] = [EOS] * num_forced
        elif EOS in ids:
            first = len(columns)
        columns.append(ids)
        if ids == [EOS] * K:
            break
    return columns


def our_columns(script, limit=100):
    """Our state machine on the same ids."""
    rules = Rules(make_config(), SamplingOptions(do_sample=False, ras_win_len=None))
    state, columns = RowState(AUDIO_OUT_BOS, limit), []
    for sampled in [*script, [0] * K]:
        logits = torch.zeros(K, V + 2)
        logits[range(K), sampled] = 5.0
        token, ids = next_step(state, torch.zeros(320), logits, rules)
        state, column = advance(state, token, ids, rules)
        if column is None:
            return columns, True
        columns.append(list(column))
        if state.finish_reason:
            break
    return columns, False


def write_script(ends=(), length=30, seed=0):
    """Random codes, and in column 12 an eos in each codebook of `ends`."""
    script = torch.randint(0, V, (length, K), generator=torch.Generator().manual_seed(seed)).tolist()
    for codebook in ends:
        script[12][codebook] = EOS
    return script


ENDS = pytest.mark.parametrize("ends", [(0,), (3,), (7,), (2, 5), ()], ids=str)


@ENDS
def test_columns_and_frames_are_those_of_the_original(ends):
    script = write_script(ends)
    columns, ended = our_columns(script, limit=30)
    assert (columns, ended) == original_columns(script, limit=30)
    ours, theirs = revert_delay(torch.tensor(columns).T), torch.tensor(original_frames(columns))
    if ends == (2, 5):  # the frame in which codebook 5 ends is cut by ours, and clipped to 1023 by the original
        assert (ours.shape[1], theirs.shape[1]) == (12 - 5 - 1, 12 - 2 - 1)
        assert theirs[5, 6] == V - 1
    else:  # without an end, ours keeps the last complete frame too
        frames = 12 - ends[0] - 1 if ends else 30 - K
        assert (ours.shape[1], theirs.shape[1]) == (frames, frames if ends else frames - 1)
    same = min(ours.shape[1], theirs.shape[1])
    assert torch.equal(ours[:, :same], theirs[:, :same])


def test_columns_are_those_of_the_original_on_random_scripts():
    generator = torch.Generator().manual_seed(0)
    endings = set()
    for seed in range(60):
        script = write_script(length=40, seed=seed)
        for row in script:
            for codebook in torch.nonzero(torch.rand(K, generator=generator) < 0.01).flatten().tolist():
                row[codebook] = EOS
        result = our_columns(script, limit=40)
        assert result == original_columns(script, limit=40)
        endings.add(result[1])
    assert endings == {True, False}


class scripted:
    """A context in which the audio head of a model says what the script says, one row of it each forward."""

    def __init__(self, model, script):
        self.model, self.script = model, script

    def __enter__(self):
        rows = iter(self.script)

        def say(module, inputs, output):
            logits = torch.zeros(*output.shape[:2], K, V + 2)
            logits[..., range(K), next(rows)] = 5.0
            return logits.flatten(2)

        self.hook = self.model.audio_lm_head.register_forward_hook(say)

    def __exit__(self, *_):
        self.hook.remove()


@ENDS
def test_both_loops_follow_their_rules_from_end_to_end(model, twin, ends):
    batch, script = collate([make_prompt(range(20, 32))]), write_script(ends)
    with scripted(model, [*script, [0] * K, [0] * K]):
        ours = generate(model, **batch, max_new_tokens=30, do_sample=False)[1][0].T.tolist()
    with scripted(twin, script):
        theirs = twin_columns(twin, batch, 30)[0].tolist()
    assert ours == original_columns(script, limit=30)[0]
    assert theirs == transformers_columns(script, limit=30)


def test_transformers_ramps_from_codebook_0_and_decodes_a_frame_with_a_marker_in_it(stack):
    """Its last frame has eos clipped to 1023 in it, a click of 40 ms; ours ends with the last complete frame."""
    theirs, ours = stack.their_processor, stack.processor
    for ends, num_ours, num_theirs in [((0,), 11, 12), ((3,), 8, 12), ((7,), 4, 12), ((), 22, 22)]:
        script = [[id + CODES - V if id >= V else id * 60 for id in row] for row in write_script(ends)]
        in_theirs = _renamed(transformers_columns(_named(script), limit=30))
        in_ours = _renamed(our_columns(_named(script), limit=30)[0])
        stop = next((n for n, column in enumerate(in_theirs) if column == [CODES + 1] * K), len(in_theirs))
        reverted = theirs.revert_delay_pattern(torch.tensor(in_theirs[1:stop])).T  # [K, F]
        kept = revert_delay(torch.tensor(in_ours).T)
        assert (kept.shape[1], reverted.shape[1]) == (num_ours, num_theirs)
        assert torch.equal(reverted[:, :num_ours], kept)
        if ends:
            assert reverted[ends[0], num_ours] == CODES + 1
        with torch.no_grad():
            wanted = stack.codec.decode(reverted.clip(0, CODES - 1)[None]).audio_values[0, 0]
            heard = theirs.batch_decode(torch.tensor(in_theirs)[None])[0]
        torch.testing.assert_close(heard, wanted, rtol=0, atol=1e-5)
        own = ours.decode([0], [torch.tensor(in_ours).T]).audio
        assert len(own) == num_ours * 960


def _named(script):
    """Ids of 1024 codes -> those of the tiny codebook, by which the rules above are written."""
    return [[id - CODES + V if id >= CODES else id // 60 for id in row] for row in script]


def _renamed(columns):
    return [[id + CODES - V if id >= V else id * 60 for id in column] for column in columns]


def test_a_whole_segment_decodes_to_the_samples_of_transformers(stack):
    codes = torch.randint(0, CODES, (K, 9), generator=torch.Generator().manual_seed(0))
    segment = apply_delay(codes, CODES, CODES + 1)
    theirs = stack.their_processor.decode(segment.T[None])
    ours = torch.from_numpy(stack.processor.decode([0], [segment]).audio)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_no_sound_is_none_in_ours_and_an_index_error_in_transformers(stack):
    with pytest.raises(IndexError):
        stack.their_processor.batch_decode(torch.zeros(1, 4, K, dtype=torch.long))
    assert stack.processor.decode([0], []).audio is None


# Sampling


class trained:
    """A context in which a model is sure, as trained ones are, that no bos and no eos outside codebook 0 comes now."""

    def __init__(self, *models):
        self.models = models

    def __enter__(self):
        def sure(module, inputs, output):
            logits = output.unflatten(-1, (K, V + 2)).clone()
            logits[..., BOS] = logits[..., 1:, EOS] = -1e4  # finite: theirs forces the first column with -inf
            return logits.flatten(-2)

        self.hooks = [model.audio_lm_head.register_forward_hook(sure) for model in self.models]

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


OPTIONS = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}
WATCHFUL = {"ras_win_len": 7, "ras_win_max_num_repeat": 1}


def up_to_the_first_end(columns):
    """[n, K] -> the columns up to the first with an eos; from there on the draws may differ, see below."""
    ends = (columns == EOS).any(dim=1).nonzero().flatten().tolist()
    return columns[: ends[0] + 1] if ends else columns


@pytest.fixture
def draw_as_transformers(monkeypatch):
    """Ours then draws with torch's global generator, as transformers does; everything else is as it is."""

    def draw(logits, noise):
        return torch.multinomial(logits.float().softmax(-1), 1).squeeze(-1)

    def redraw(ids, logits, window, options, noise):
        if options.ras_win_len is not None:
            again = (window == ids[:, None]).sum(-1) >= options.ras_win_max_num_repeat
            if again.any():
                ids = ids.masked_scatter(again, draw(logits[again], noise))
        return ids

    monkeypatch.setattr("higgs_audio.generation.sampling.draw", draw)
    monkeypatch.setattr("higgs_audio.generation.loop.repetition_aware", redraw)


@pytest.mark.usefixtures("draw_as_transformers")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_streams_agree_with_transformers_once_a_reference_and_the_bos_column_are_in_the_prompt(model, twin, seed):
    """The recipe for equal draws: both start at the first sampled column, with the same seed of the same generator."""
    ids, columns = make_prompt(range(20, 32), [make_codes(6, 1)])
    batch = collate([([*ids, AUDIO_OUT], torch.cat([columns, torch.full((1, K), BOS)]))])
    with trained(model, twin):
        torch.manual_seed(seed)
        ours = generate(model, **batch, max_new_tokens=40, seed=0, ras_win_len=None, **OPTIONS)[1][0].T[1:]
        torch.manual_seed(seed)
        theirs = twin_columns(twin, batch, 40, do_sample=True, **OPTIONS)[0]
    assert len(ours) > K
    assert torch.equal(ours, theirs[: len(ours)])
    assert (theirs[len(ours) :] == EOS).all()


@pytest.mark.usefixtures("draw_as_transformers")
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_streams_with_repetition_awareness_agree_with_transformers_up_to_the_first_end(model, twin, seed):
    """A reference's last code lies K + 1 columns before a codebook's first, outside a window of 7, and markers never
    count, so both windows hold the same. In the closing ramp after an eos ours, as the original, still draws for cells
    that the ramp overwrites, and transformers does not."""
    ids, columns = make_prompt(range(20, 32), [make_codes(1, 4).expand(K, 6)])  # one code again and again
    batch = collate([([*ids, AUDIO_OUT], torch.cat([columns, torch.full((1, K), BOS)]))])
    with trained(model, twin):
        torch.manual_seed(seed)
        ours = generate(model, **batch, max_new_tokens=40, seed=0, **OPTIONS, **WATCHFUL)[1][0].T[1:]
        torch.manual_seed(seed)
        plain = generate(model, **batch, max_new_tokens=40, seed=0, **OPTIONS, ras_win_len=None)[1][0].T[1:]
        torch.manual_seed(seed)
        theirs = twin_columns(twin, batch, 40, do_sample=True, **OPTIONS, **WATCHFUL)[0]
    ours = up_to_the_first_end(ours)
    assert torch.equal(ours, theirs[: len(ours)])
    assert not torch.equal(ours, plain[: len(ours)]), "nothing was drawn again"


@pytest.mark.usefixtures("draw_as_transformers")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_a_reference_transformers_spends_one_draw_on_the_column_that_it_forces(model, twin, seed):
    batch = collate([make_prompt(range(20, 32))])
    with trained(model, twin):
        torch.manual_seed(seed)
        torch.multinomial(torch.ones(K, V + 2), 1)
        ours = generate(model, **batch, max_new_tokens=40, seed=0, **OPTIONS, ras_win_len=None)[1][0].T
        torch.manual_seed(seed)
        theirs = twin_columns(twin, batch, 40, do_sample=True, **OPTIONS)[0]
    assert len(ours) > K
    assert torch.equal(ours, theirs[: len(ours)])


def test_in_a_batch_transformers_draws_all_rows_from_one_generator_and_ours_each_by_its_own_seed(model, twin):
    """So in ours a row of a batch is what it is alone, and in transformers it depends on the others."""
    prompts = [make_prompt(range(20, 32)), make_prompt(range(40, 55))]
    torch.manual_seed(0)
    together = twin_columns(twin, collate(prompts), 20, do_sample=True)
    torch.manual_seed(0)
    alone = twin_columns(twin, collate(prompts[1:]), 20, do_sample=True)
    assert not torch.equal(together[1, : alone.shape[1]], alone[0])
    ours = generate(model, **collate(prompts), max_new_tokens=20, seed=[5, 0]).audio_sequences[1][0]
    assert torch.equal(ours, generate(model, **collate(prompts[1:]), max_new_tokens=20, seed=0)[1][0])


# Where transformers' loop stumbles


def test_a_short_prompt_starts_with_rows_that_are_not_bos_in_transformers(model, twin):
    batch = collate([make_prompt([20, 21, 22])])
    assert (generate(model, **batch, max_new_tokens=2, do_sample=False)[1][0][:, 0] == BOS).all()
    assert (twin_columns(twin, batch, 2)[0, 0] != BOS).any()


def test_a_reference_fewer_than_8_tokens_ago_has_no_choice_left_in_transformers(model, twin):
    batch = collate([make_prompt((), [make_codes(6, 0)])])
    with pytest.raises(RuntimeError, match="probability tensor"):
        twin_columns(twin, batch, 3, do_sample=True)
    segment = generate(model, **batch, max_new_tokens=12, min_frames=9, seed=0)[1][0]
    assert [(row == BOS).sum().item() for row in segment] == list(range(1, K + 1))


def test_a_prompt_with_one_column_is_continued_by_ours_and_fails_in_transformers(model, twin):
    ids, _ = make_prompt(range(20, 32))
    batch = collate([([*ids, AUDIO_OUT], torch.full((1, K), BOS))])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        twin_columns(twin, batch, 3)
    whole = generate(model, **collate([make_prompt(range(20, 32))]), max_new_tokens=9, do_sample=False)
    assert torch.equal(generate(model, **batch, max_new_tokens=8, do_sample=False)[1][0], whole[1][0])


def test_a_sound_that_was_cut_begins_anew_in_transformers_once_its_opener_is_8_tokens_back(model, twin):
    ids, _ = make_prompt(range(20, 32))
    options = {"do_sample": False, "min_frames": 30}
    whole = generate(model, **collate([make_prompt(range(20, 32))]), max_new_tokens=30, **options)[1][0]
    batch = collate([([*ids, *[AUDIO_OUT] * 12], whole[:, :12].T)])
    assert (twin_columns(twin, batch, 1)[0, 0] == BOS).all()
    assert torch.equal(generate(model, **batch, max_new_tokens=18, **options)[1][0], whole)


def test_repetition_awareness_is_an_option_of_the_call_in_ours_and_of_the_config_in_transformers(model, twin):
    batch = collate([make_prompt(range(20, 32))])
    with pytest.raises(ValueError, match="ras_win_len"):
        twin.generate(**batch, ras_win_len=7, max_new_tokens=2)
    assert generate(model, **batch, ras_win_len=7, max_new_tokens=2, seed=0).finish_reasons == ["length"]


def test_a_bos_in_mid_stream_can_be_sampled_in_transformers_and_not_in_ours(model, twin):
    script = [[BOS] * K] * 20
    batch = collate([make_prompt(range(20, 32))])
    with scripted(model, script):
        ours = generate(model, **batch, max_new_tokens=20, do_sample=False)[1][0]
    with scripted(twin, script):
        theirs = twin_columns(twin, batch, 20)[0]
    assert (theirs == BOS).all()
    assert not (ours[:, K:] == BOS).any()


def test_the_result_of_transformers_holds_the_prompts_columns_and_ours_only_what_was_said(model, twin):
    ids, columns = make_prompt(range(20, 32), [make_codes(6, 1)])
    batch = collate([(ids, columns)])
    theirs = twin.generate(**batch, max_new_tokens=5, do_sample=False)
    ours = generate(model, **batch, max_new_tokens=5, do_sample=False)
    assert theirs.shape == (1, len(columns) + 5, K)
    assert ours[1][0].shape == (K, 5)
    assert ours[0].shape == (1, len(ids) + 5)


def test_a_column_of_one_row_fills_the_placeholder_of_another_in_transformers_and_is_refused_by_ours(model, twin):
    batch = collate([make_prompt(range(20, 32), [make_codes(6, 1)]), make_prompt(range(20, 25), [make_codes(3, 1)])])
    batch["audio_input_ids_mask"][0, -1], batch["audio_input_ids_mask"][1, 12] = False, True
    with torch.no_grad():
        assert bool(twin(**batch).logits.isfinite().all())
    with pytest.raises(PromptError, match="they must be equal"):
        model(**batch)


# What transformers' audio tokenizer and processor do otherwise


def test_a_marker_among_codes_is_an_index_error_in_transformers_and_a_codes_error_in_ours(stack):
    codes = torch.full((1, K, 3), CODES)
    with pytest.raises(IndexError):
        stack.their_processor.audio_tokenizer.decode(codes)
    with pytest.raises(CodesError, match="stream markers must be removed"):
        stack.codec.decode(codes)


@torch.no_grad()
def test_padding_by_the_published_feature_extractor_changes_the_codes(stack):
    """Its file says hop_length 960; with padding=True it fills the last frame up, and HuBERT hears the silence."""
    sound = make_sound(3 * 960 + 300)
    extractor = DacFeatureExtractor(feature_size=1, hop_length=960, sampling_rate=24000)
    padded = extractor(sound[0, 0].numpy(), padding=True, sampling_rate=24000, return_tensors="pt")["input_values"]
    assert padded.shape == (1, 1, 4 * 960)
    encode = stack.their_processor.audio_tokenizer.encode
    assert not torch.equal(encode(padded).audio_codes, encode(sound).audio_codes)
    assert torch.equal(stack.codec.encode(sound).audio_codes, encode(sound).audio_codes)


def test_a_processor_whose_codec_came_from_no_folder_is_loaded_by_ours_alone(stack, tmp_path):
    stack.their_processor.save_pretrained(tmp_path / "theirs")
    with pytest.raises(OSError, match="Repo id"):
        HiggsAudioV2Processor.from_pretrained(tmp_path / "theirs")
    stack.processor.save_pretrained(tmp_path / "ours")
    loaded = HiggsAudioProcessor.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.audio_tokenizer.fc.weight, stack.codec.fc.weight)


# Sizes


def test_defaults_are_the_published_sizes_in_ours_and_others_in_transformers():
    ours, theirs = HiggsAudioConfig(), HiggsAudioV2Config()
    assert (ours.audio_codebook_size, ours.codebook_rows) == (1024, 1026)
    assert theirs.codebook_size == 1024  # the published file says 1026: theirs counts the two markers
    assert (ours.bos_token_id, theirs.bos_token_id) == (128000, 1)
    assert (ours.eos_token_id, theirs.eos_token_id) == (128009, 128009)
    codec, their_codec = HiggsAudioTokenizerConfig(), TransformersTokenizerConfig()
    assert (codec.hop_length, codec.num_codebooks) == (960, 8)
    assert their_codec.hop_length == 320
    published = TransformersTokenizerConfig(
        acoustic_model_config={"downsampling_ratios": [8, 5, 4, 2, 3], "upsampling_ratios": [8, 5, 4, 2, 3]},
        target_bandwidths=[0.5, 1, 1.5, 2, 4],  # of the original's file
    )
    assert (published.hop_length, published.num_quantizers) == (960, 16)


def test_the_package_holds_no_recording_of_anybody():
    sounds = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".npy", ".pt")
    assert not [path for path in NANO.parent.rglob("*") if path.suffix in sounds]


# The document


def test_every_disagreement_has_a_row_and_every_test_that_a_row_names_exists():
    rows = re.findall(r"^\| (\d+) \| .+ \|$", DOCUMENT, flags=re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 36))
    named = re.findall(r"`(test_\w+)`", DOCUMENT)
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    existing = {name for text in files for name in re.findall(r"def (test_\w+)\(", text)}
    assert len(named) >= 35
    for name in named:
        assert name in existing, name


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL))
def test_the_blocks_of_the_document_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "compatibility.md", "exec"), {"__name__": "compatibility"})
