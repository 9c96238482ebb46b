"""Tests of the plain loop on a tiny model, with transformers' loop as oracle."""

import pytest
import torch
from oracle import (
    AUDIO_EOS,
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BEGIN,
    BOS,
    DELAY,
    EOS,
    EOT,
    PAD,
    K,
    collate,
    fill,
    generate_columns,
    make_codes,
    make_config,
    make_prompt,
    silence,
    transformers_model,
)

from higgs_audio.delay import DelayState, apply_delay
from higgs_audio.errors import CodesError, HiggsAudioError, OptionError, PromptError
from higgs_audio.generation.loop import generate, stream
from higgs_audio.generation.row_state import mask_audio, mask_text
from higgs_audio.model.model import HiggsAudioForConditionalGeneration


class BiasedModel(HiggsAudioForConditionalGeneration):
    """A model that adds constants to its text logits, so that it sometimes switches mode despite random weights."""

    text_bias: dict[int, float] = {}  # noqa: RUF012
    last_inputs = ()

    def forward(self, *args, **kwargs):
        self.last_inputs = sorted(name for name in ("input_ids", "audio_input_ids") if kwargs.get(name) is not None)
        output = super().forward(*args, **kwargs)
        for token, bias in self.text_bias.items() if output.text_logits is not None else ():
            output.text_logits[..., token] += bias
        return output


@pytest.fixture(scope="module")
def model():
    return fill(BiasedModel(make_config()), seed=0)


@pytest.fixture
def switching(model):
    """The model, biased to switch between text and audio and to end."""
    model.text_bias = {AUDIO_OUT_BOS: 12.0, EOT: 6.0}
    yield model
    model.text_bias = {}


def mixed_prompts():
    """Returns prompts of different lengths; with no, one and two references; continued in audio or in text."""
    return [
        make_prompt(range(20, 32)),
        make_prompt(range(40, 43), [make_codes(5, 1)], end=()),
        make_prompt(range(60, 65), [make_codes(9, 2), make_codes(1, 3)]),
        make_prompt((), end=()),
    ]


def compare_with_oracle(end_codebooks, steps=40):
    """Yields greedy columns [n, K] of our loop and of transformers' loop, for several weights and numbers of
    references."""
    pairs = []
    for seed in range(6):
        model = fill(BiasedModel(make_config()), seed)
        silence(model, range(K), BOS)  # transformers can sample a bos inside a segment, our loop cannot
        silence(model, sorted(set(range(K)) - set(end_codebooks)), EOS)
        theirs = transformers_model(model)
        for codes in [[], [make_codes(6, seed)], [make_codes(3, seed), make_codes(11, seed + 1)]]:
            batch = collate([make_prompt(range(20, 32), codes)])
            ours = generate(model, **batch, max_new_tokens=steps, do_sample=False)[1][0].T
            pairs.append((ours, generate_columns(theirs, batch, steps)[0]))
    return pairs


@pytest.mark.filterwarnings("ignore")  # a warning of transformers about its generation config
def test_greedy_columns_equal_those_of_transformers_as_long_as_there_is_no_eos():
    for ours, theirs in compare_with_oracle(end_codebooks=[]):
        assert len(ours) == 40
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_greedy_columns_equal_those_of_transformers_to_the_end_when_codebook_0_ends_first():
    """transformers can add a column of eos if the last codebook has not sampled its own eos on the diagonal."""
    pairs = compare_with_oracle(end_codebooks=[0])
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs[: len(ours)])
        assert (theirs[len(ours) :] == EOS).all()
    assert sum(len(ours) < 40 for ours, _ in pairs) > 5


@pytest.mark.filterwarnings("ignore")
def test_greedy_columns_equal_those_of_transformers_up_to_an_eos_in_any_codebook():
    """After that the rules differ: transformers sets codebook 0 to eos in the next step, our loop in this step."""
    for ours, theirs in compare_with_oracle(end_codebooks=range(K)):
        ends = (ours == EOS).any(dim=1).nonzero()
        first = int(ends[0]) if len(ends) else len(ours)
        assert torch.equal(ours[:first], theirs[:first])
        differs = (ours[first : first + 1] != theirs[first : first + 1]).nonzero()[:, 1]
        assert (ours[first, differs] == EOS).all() if len(differs) else True


def test_a_prompt_of_one_token_starts_with_one_bos_column_and_the_whole_delay(model):
    """transformers derives the delay from the last K prompt tokens, and forces wrong ids if there are fewer."""
    segment = generate(model, torch.tensor([[AUDIO_OUT_BOS]]), max_new_tokens=12, do_sample=False)[1][0]
    assert (segment[:, 0] == BOS).all()
    assert [(row == BOS).sum().item() for row in segment] == list(range(1, K + 1))


def test_a_reference_just_before_the_segment_does_not_change_its_delay(model):
    """Both existing implementations start to close the segment there, and force ids to both bos and eos."""
    ids, columns = make_prompt((), [make_codes(6, 0)])
    segment = generate(model, **collate([(ids, columns)]), max_new_tokens=6, min_frames=9, do_sample=False)[1][0]
    assert not (segment == EOS).any()


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "seed": [11, 12, 13, 14]},
        {"do_sample": True, "seed": [5, 6, 7, 8], "temperature": 1.5, "top_k": 10, "ras_win_max_num_repeat": 1},
        {"do_sample": False, "ras_win_len": 4, "ras_win_max_num_repeat": 1, "seed": [1, 2, 3, 4]},
    ],
)
def test_a_row_of_a_batch_equals_its_solo_run(switching, options):
    prompts = mixed_prompts()
    together = generate(switching, **collate(prompts), max_new_tokens=50, **options)
    for row, prompt in enumerate(prompts):
        own = {name: value[row : row + 1] if name == "seed" else value for name, value in options.items()}
        alone = generate(switching, **collate([prompt]), max_new_tokens=50, **own)
        tokens = together.sequences[row, max(len(ids) for ids, _ in prompts) - len(prompt[0]) :]
        assert tokens[: alone.sequences.shape[1]].tolist() == alone.sequences[0].tolist()
        assert (tokens[alone.sequences.shape[1] :] == PAD).all()
        assert [s.tolist() for s in together.audio_sequences[row]] == [s.tolist() for s in alone[1]]
        assert together.finish_reasons[row] == alone.finish_reasons[0]


def test_rows_in_text_and_in_audio_share_steps_and_switch_mode(switching):
    """The test of batches above relies on such steps."""
    kinds = [
        {(step.row, step.column is None) for step in steps}
        for steps in stream(switching, **collate(mixed_prompts()), max_new_tokens=50, seed=[11, 12, 13, 14])
    ]
    both = [kind for kind in kinds if {in_text for _, in_text in kind} == {True, False}]
    only_audio = [kind for kind in kinds if {in_text for _, in_text in kind} == {False}]
    assert len(both) > 5
    assert len(only_audio) > 5
    assert {row for kind in kinds for row, in_text in kind if in_text} == {0, 1, 2, 3}
    assert {row for kind in kinds for row, in_text in kind if not in_text} == {0, 1, 2, 3}


def test_a_step_has_only_columns_if_every_unfinished_row_is_in_audio(switching):
    before = None
    for steps in stream(switching, **collate(mixed_prompts()), max_new_tokens=50, seed=[11, 12, 13, 14]):
        if before is not None:
            in_text = [step.column is None for step in before if step.finish_reason is None]
            ids, columns = ["input_ids"], ["audio_input_ids"]
            assert switching.last_inputs == (columns if not any(in_text) else ids if all(in_text) else columns + ids)
        before = steps


def test_a_finished_row_in_text_does_not_require_token_ids(model):
    model.text_bias = {EOT: 1e9}
    batch = collate([make_prompt([20, 21]), make_prompt([20, 21], end=())])
    steps = stream(model, **batch, do_sample=False)
    assert [step.finish_reason for step in next(steps)] == [None, "stop"]
    assert len(next(steps)) == 1
    model.text_bias = {}
    assert model.last_inputs == ["audio_input_ids"]


def test_the_result_as_a_prompt_gives_the_same_choices(switching):
    """One forward pass over the result equals the steps: every token was an input exactly once, at its position."""
    prompt = make_prompt(range(20, 26), [make_codes(4, 0)])
    result = generate(switching, **collate([prompt]), max_new_tokens=60, do_sample=False, min_frames=3)
    columns = torch.cat([prompt[1], *[segment.T for segment in result[1]]])
    assert len(result[1]) > 1
    with torch.no_grad():
        whole = switching(input_ids=result[0], audio_input_ids=columns[None])
    is_audio = torch.isin(result[0][0], torch.tensor([AUDIO_OUT, DELAY]))
    column_of = is_audio.cumsum(0) - 1
    delay_state = None
    for position in range(len(prompt[0]), result[0].shape[1]):
        token = int(result[0][0, position])
        if token == AUDIO_OUT and int(result[0][0, position - 1]) == AUDIO_OUT_BOS:
            _, delay_state = DelayState(K, BOS, EOS).push([BOS] * K)
        elif token == AUDIO_OUT:
            chosen = mask_audio(whole.logits[0, position - 1], delay_state, 3).argmax(-1).tolist()
            column, delay_state = delay_state.push(chosen)
            assert list(column) == columns[column_of[position]].tolist()
        elif token != AUDIO_EOS:
            assert int(mask_text(whole.text_logits[0, position - 1], switching.config).argmax()) == token


def test_the_stream_concatenated_is_the_output(switching):
    batch = collate(mixed_prompts())
    options = {"max_new_tokens": 50, "seed": [11, 12, 13, 14]}
    output = generate(switching, **batch, **options)
    tokens, columns, reasons = [[[] for _ in range(4)] for _ in range(3)]
    for steps in stream(switching, **batch, **options):
        for step in steps:
            tokens[step.row].append(step.token)
            if step.column_index == 0:
                columns[step.row].append([])
            if step.column is not None:
                assert len(columns[step.row][-1]) == step.column_index
                columns[step.row][-1].append(step.column)
            reasons[step.row].append(step.finish_reason)
    for row in range(4):
        new = output.sequences[row, batch["input_ids"].shape[1] :].tolist()
        assert new[: len(tokens[row])] == tokens[row]
        assert [torch.tensor(segment).T.tolist() for segment in columns[row]] == [
            segment.tolist() for segment in output.audio_sequences[row]
        ]
        assert reasons[row] == [None] * (len(tokens[row]) - 1) + [output.finish_reasons[row]]


def test_a_stream_can_be_closed_at_any_step(model):
    steps = stream(model, torch.tensor([[BEGIN, AUDIO_OUT_BOS]]))
    assert next(steps)[0].column == (BOS,) * K
    steps.close()


@pytest.mark.parametrize("reference", [[], [make_codes(4, 0)]])
def test_a_cut_segment_continues_as_if_it_had_not_been_cut(switching, reference):
    ids, columns = make_prompt(range(20, 32), reference)
    options = {"do_sample": False, "min_frames": 12}
    whole = generate(switching, **collate([(ids, columns)]), max_new_tokens=60, **options)
    assert len(whole[1]) > 1
    for cut in (1, 4, 8, 15):
        longer = (ids + [AUDIO_OUT] * cut, torch.cat([columns, whole[1][0][:, :cut].T]))
        rest = generate(switching, **collate([longer]), max_new_tokens=60 - cut, **options)
        assert rest[0].tolist() == whole[0].tolist()
        assert [segment.tolist() for segment in rest[1]] == [segment.tolist() for segment in whole[1]]


def test_a_prompt_that_ends_in_a_complete_segment_is_continued_with_audio_eos(model):
    delayed = apply_delay(make_codes(4, 0), BOS, EOS)
    ids = [BEGIN, AUDIO_OUT_BOS] + [AUDIO_OUT] * delayed.shape[1]
    batch = collate([(ids, delayed.T)])
    assert generate(model, **batch, max_new_tokens=1)[0][0, -1] == AUDIO_EOS


def test_max_new_tokens_counts_steps_and_max_length_the_prompt_too(model):
    batch = collate([make_prompt(range(20, 26), [make_codes(4, 0)])])
    length = batch["input_ids"].shape[1]
    options = {"min_frames": 100, "seed": 0}
    for limits, steps in [
        ({"max_new_tokens": 9}, 9),
        ({"max_length": length + 7}, 7),
        ({"max_length": length + 7, "max_new_tokens": 9}, 7),
        ({"max_length": length + 9, "max_new_tokens": 7}, 7),
    ]:
        output = generate(model, **batch, **limits, **options)
        assert output[0].shape[1] == length + steps
        assert output[1][0].shape == (K, steps)
        assert output.finish_reasons == ["length"]


def test_max_length_does_not_count_padding(model):
    prompts = [make_prompt(range(20, 40)), make_prompt(range(20, 22))]
    output = generate(model, **collate(prompts), max_length=30, min_frames=100, seed=0)
    assert [segments[0].shape[1] for segments in output.audio_sequences] == [30 - 22, 30 - 4]


def test_max_frames_and_min_frames_bound_every_segment(switching):
    output = generate(switching, **collate(mixed_prompts()), max_new_tokens=80, min_frames=5, max_frames=6, seed=0)
    finished = [s for segments in output.audio_sequences for s in segments if (s[:7, -1] == EOS).all()]
    assert len(finished) > 2
    assert all(segment.shape[1] - K - 1 in (5, 6) for segment in finished)
    assert any(segment.shape[1] - K - 1 == 6 for segment in finished)


def test_a_row_of_text_has_no_segments(model):
    model.text_bias = {AUDIO_OUT_BOS: -1e9, EOT: -1e9}
    output = generate(model, torch.tensor([[BEGIN, 20]]), max_new_tokens=5, seed=0)
    model.text_bias = {}
    assert output[1] == []
    assert output.finish_reasons == ["length"]


def test_any_of_several_end_tokens_stops_a_row(model):
    batch = collate([make_prompt(range(20, 26))])
    output = generate(model, **batch, max_frames=3, eos_token_id=[EOT, AUDIO_EOS], seed=0)
    assert output[0][0, -1] == AUDIO_EOS
    assert generate(model, **batch, max_new_tokens=4, eos_token_id=None).finish_reasons == ["length"]


class LetterTokenizer:
    """A minimal tokenizer: each id is one letter."""

    def decode(self, ids):
        return "".join(chr(ord("a") + id % 26) for id in ids)


def test_a_stop_string_ends_a_row_as_soon_as_its_new_text_contains_it(model):
    batch, tokenizer = collate([make_prompt([20], end=())]), LetterTokenizer()
    model.text_bias = {EOT: -1e9, AUDIO_OUT_BOS: -1e9}
    free = generate(model, **batch, max_new_tokens=12, do_sample=False)[0][0, 2:].tolist()
    stop = tokenizer.decode(free[3:5])
    text = tokenizer.decode(free)
    output = generate(model, **batch, max_new_tokens=12, do_sample=False, stop_strings=["?", stop], tokenizer=tokenizer)
    model.text_bias = {}
    assert output[0].shape[1] == 2 + text.index(stop) + 2
    assert output.finish_reasons == ["stop"]
    with pytest.raises(OptionError, match="tokenizer"):
        generate(model, **batch, stop_strings="x")


def test_one_seed_gives_every_row_a_seed_of_its_own_and_is_reproducible(model):
    batch = collate([make_prompt(range(20, 26))] * 2)
    first, again = (generate(model, **batch, max_new_tokens=20, seed=3) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert first.audio_sequences[0][0].tolist() != first.audio_sequences[1][0].tolist()
    alone = generate(model, **collate([make_prompt(range(20, 26))]), max_new_tokens=20, seed=4)
    assert alone[1][0].tolist() == first.audio_sequences[1][0].tolist()


def test_without_a_seed_seeds_come_from_torch_s_global_generator(model):
    batch = collate([make_prompt(range(20, 26))])
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(generate(model, **batch, max_new_tokens=20)[1][0].tolist())
    assert runs[0] == runs[1] != runs[2]


def test_the_output_unpacks_like_a_pair(model):
    one = generate(model, **collate([make_prompt([20])]), max_new_tokens=3, seed=0)
    sequences, segments = one
    assert (sequences is one[0], segments is one.audio_sequences[0], len(one)) == (True, True, 2)
    two = generate(model, **collate([make_prompt([20]), make_prompt([21])]), max_new_tokens=3, seed=0)
    assert two[1] is two.audio_sequences


def test_the_method_of_the_model_calls_this_function(model):
    batch = collate([make_prompt([20])])
    ours = generate(model, **batch, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=5, do_sample=False)[0], ours[0])


def test_a_training_batch_can_be_passed_to_generate(model):
    batch = collate([make_prompt(range(20, 26), [make_codes(4, 0)])])
    labels = dict.fromkeys(("label", "labels", "label_ids"), batch["input_ids"])
    labels |= dict.fromkeys(("audio_labels", "label_audio_ids"), batch["audio_input_ids"])
    plain = generate(model, **batch, max_new_tokens=5, do_sample=False)
    assert torch.equal(generate(model, **batch, **labels, max_new_tokens=5, do_sample=False)[0], plain[0])


def test_nan_from_the_model_is_a_numerics_error():
    broken = fill(BiasedModel(make_config()), seed=0)
    with torch.no_grad():
        broken.audio_lm_head.weight[5] = float("nan")
    with pytest.raises(HiggsAudioError, match=r"step 1, audio: the model returned"):
        generate(broken, **collate([make_prompt([20])]), max_new_tokens=5, seed=0)
    with torch.no_grad():
        broken.text_lm_head.weight[5] = float("nan")
    with pytest.raises(HiggsAudioError, match=r"step 0, text: the model returned"):
        generate(broken, **collate([make_prompt([20], end=())]), max_new_tokens=5, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.3}, "'temprature'.*did you mean 'temperature'"),
        ({"temperature": 0, "do_sample": True}, "temperature=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0.*1 to 18"),
        ({"top_k": 19}, "top_k=19.*1 to 18"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_length": 3}, "max_length=3.*3 positions"),
        ({"min_frames": -1}, "min_frames=-1"),
        ({"max_frames": 0}, "max_frames=0"),
        ({"min_frames": 5, "max_frames": 4}, "min_frames=5.*0 to 4"),
        ({"seed": [1, 2]}, "list of 1"),
        ({"seed": "x"}, "seed='x'"),
        ({"seed": -1}, "seed=-1"),
        ({"eos_token_id": "stop"}, "eos_token_id='stop'.*0 to 319"),
        ({"eos_token_id": [EOT, "stop"]}, "eos_token_id="),
        ({"eos_token_id": 320}, "eos_token_id=320"),
        ({"eos_token_id": -1}, "eos_token_id=-1"),
        ({"eos_token_id": 3.0}, "eos_token_id=3.0"),
        ({"eos_token_id": True}, "eos_token_id=True"),
        ({"stop_strings": 3}, "stop_strings=3"),
        ({"stop_strings": b"stop"}, "stop_strings=b'stop'"),
        ({"stop_strings": ["stop", None]}, "stop_strings="),
        ({"stop_strings": ["stop", ""]}, "none of them empty"),
        ({"stop_strings": "stop", "tokenizer": "nano"}, "needs tokenizer="),
    ],
)
def test_a_wrong_option_is_rejected_before_the_first_step(model, options, message):
    with pytest.raises(OptionError, match=message):
        stream(model, torch.tensor([[BEGIN, 20, AUDIO_OUT_BOS]]), **options)


def test_inputs_that_do_not_fit_are_rejected_before_the_first_step(model):
    ids = torch.tensor([[BEGIN, 20, AUDIO_OUT_BOS]])
    with pytest.raises(PromptError, match="at least one token"):
        stream(model, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(PromptError, match="at least one token"):
        stream(model, [1, 2, 3])
    for strange in (320, -1):
        with pytest.raises(PromptError, match=r"allowed: 0 to 319\. Use the model's own tokenizer"):
            stream(model, torch.tensor([[BEGIN, strange, AUDIO_OUT_BOS]]))
    for kind in (torch.float32, torch.bool):
        with pytest.raises(PromptError, match="must contain integers"):
            stream(model, ids.to(kind))
    with pytest.raises(PromptError, match="without audio tower"):
        stream(model, ids, input_features=torch.zeros(1, 8, 100), feature_positions=torch.zeros_like(ids))
    with pytest.raises(PromptError, match="pass input_features and feature_positions together"):
        stream(model, ids, feature_positions=torch.ones_like(ids))
    with pytest.raises(PromptError, match="pad shorter prompts on the left"):
        stream(model, ids, torch.tensor([[1, 1, 0]]))
    with pytest.raises(PromptError, match="does not fit"):
        stream(model, ids, torch.ones(1, 2))
    with pytest.raises(CodesError, match="B, K"):
        stream(model, ids, audio_input_ids=torch.zeros(1, 4, 7, dtype=torch.long))
    with pytest.raises(CodesError, match="audio_input_ids_mask"):
        stream(model, ids, audio_input_ids=torch.zeros(1, 4, K).long(), audio_input_ids_mask=torch.ones(1, 3))
    with pytest.raises(CodesError, match="no bos column"):
        stream(model, torch.tensor([[AUDIO_OUT]]), audio_input_ids=torch.zeros(1, 1, K, dtype=torch.long))
    with pytest.raises(PromptError, match="equal"):
        next(stream(model, ids, audio_input_ids=torch.zeros(1, 4, K, dtype=torch.long)))
