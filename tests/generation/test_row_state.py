"""Tests of the state machine of a row, on scripted logits."""

from dataclasses import replace

import pytest
import torch
from oracle import (
    AUDIO_EOS,
    AUDIO_IN,
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BEGIN,
    BOS,
    DELAY,
    EOS,
    EOT,
    V,
    make_config,
)

from higgs_audio.delay import DelayState, revert_delay
from higgs_audio.generation.row_state import RowState, advance, mask_audio, mask_text, next_step
from higgs_audio.generation.rules import Rules
from higgs_audio.generation.sampling import SamplingOptions

GREEDY = SamplingOptions(do_sample=False, ras_win_len=None)


def one_hot(ids, size):
    logits = torch.zeros(len(ids), size)
    logits[torch.arange(len(ids)), torch.tensor(ids)] = 5.0
    return logits


def run_script(script, num_codebooks=3, token=AUDIO_OUT_BOS, limit=100, **rules):
    """Runs greedy steps on scripted ids, a list for a column, an int for a text token; returns tokens, columns,
    state."""
    config = make_config(audio_num_codebooks=num_codebooks)
    rules = Rules(config, **{"sampling": GREEDY, "eos_token_ids": frozenset({EOT})} | rules)
    state, tokens, columns = RowState(token, limit), [], []
    for item in script:
        text, audio = (0, item) if isinstance(item, list) else (item, [0] * num_codebooks)
        token, sampled = next_step(state, one_hot([text], 320)[0], one_hot(audio, V + 2), rules)
        state, column = advance(state, token, sampled, rules)
        tokens.append(token)
        if column is not None:
            columns.append(column)
        if state.finish_reason:
            break
    return tokens, columns, state


def test_a_segment_ended_by_codebook_0_then_returns_to_text_and_stops():
    tokens, columns, state = run_script([0, [1, 9, 9], [2, 3, 9], [EOS, 4, 5], [6, 7, 8], [9, 10, 11], 0, EOT, 50])
    assert columns == [
        (BOS, BOS, BOS),
        (1, BOS, BOS),
        (2, 3, BOS),
        (EOS, 4, 5),
        (EOS, 7, 8),
        (EOS, EOS, 11),
    ]
    assert tokens == [AUDIO_OUT] * 6 + [AUDIO_EOS, EOT]
    assert state.finish_reason == "stop"


@pytest.mark.parametrize("first", [0, 3, 7])
def test_eos_first_in_codebook_k_gives_the_documented_numbers_of_columns_and_frames(first):
    script = [0] + [[1] * 8 for _ in range(11)]
    script.append([1] * first + [EOS] + [1] * (7 - first))
    tokens, columns, _ = run_script(script + [[1] * 8] * 10, num_codebooks=8, limit=12 + 8 - first + 1)
    assert len(columns) == 12 + 8 - first
    assert tokens[-1] == AUDIO_EOS
    assert revert_delay(torch.tensor(columns).T).shape == (8, 12 - first - 1)


def test_without_eos_the_limit_ends_the_row():
    tokens, columns, state = run_script([0] + [[1, 2, 3]] * 50, limit=10)
    assert tokens == [AUDIO_OUT] * 10
    assert (len(columns), state.finish_reason) == (10, "length")


def test_text_can_precede_and_follow_audio():
    tokens, columns, _ = run_script(
        [11, 12, AUDIO_OUT_BOS, 0, [1] * 3, [EOS] * 3, [1] * 3, [1] * 3, 0, 13, EOT], token=BEGIN
    )
    assert tokens == [11, 12, AUDIO_OUT_BOS] + [AUDIO_OUT] * 5 + [AUDIO_EOS, 13, EOT]
    assert len(columns) == 5


def test_a_second_segment_starts_with_its_own_delay():
    once = [AUDIO_OUT_BOS, 0, [1] * 3, [1] * 3, [EOS, 1, 1], [1] * 3, [1] * 3, 0]
    _, columns, _ = run_script([*once, *once, EOT], token=BEGIN)
    assert len(columns) == 12
    assert columns[:6] == columns[6:]


def test_text_never_samples_ids_that_only_the_state_machine_writes():
    masked = mask_text(torch.zeros(320), make_config())
    assert masked.isinf().nonzero().flatten().tolist() == sorted([AUDIO_IN, AUDIO_OUT, DELAY, AUDIO_EOS])


def test_masking_text_ignores_ids_outside_the_vocabulary():
    assert not mask_text(torch.zeros(100), make_config()).isinf().any()


def test_eos_codebooks_masks_eos_in_the_other_codebooks():
    """A small model predicts the upper codebooks poorly: earlier, an eos in the eighth ended a dialogue after 0.16
    seconds."""
    delay_state = DelayState(3, BOS, EOS, num_columns=9)
    for count, ends in ((None, [True, True, True]), (1, [True, False, False]), (2, [True, True, False])):
        logits = mask_audio(torch.zeros(3, V + 2), delay_state, 0, count)
        assert logits[:, EOS].isfinite().tolist() == ends
        assert bool(logits[:, :V].isfinite().all())


@pytest.mark.parametrize(("count", "ended"), [(None, True), (1, False)])
def test_an_eos_in_the_last_codebook_ends_the_segment_unless_eos_codebooks_excludes_it(count, ended):
    script = [[0, 0, 0], *[[1, 2, 3]] * 5, [1, 2, EOS], *[[1, 2, 3]] * 5]
    _, columns, _ = run_script(script, sampling=replace(GREEDY, eos_codebooks=count), limit=12)
    assert (columns[-1] == (EOS,) * 3) is ended


def test_stream_bos_is_never_sampled_and_eos_not_before_min_frames():
    masked = mask_audio(torch.zeros(3, V + 2), DelayState(3, BOS, EOS, num_columns=4), min_frames=2).isinf()
    assert masked[:, BOS].all()
    assert masked[:, EOS].tolist() == [False, False, True]  # the cells of column 4 are of frames 3, 2 and 1
    assert not masked[:, :BOS].any()


def test_max_frames_closes_the_segment_and_ends_the_row_with_length():
    tokens, columns, state = run_script([0] + [[1, 2, 3]] * 20, max_frames=4)
    assert revert_delay(torch.tensor(columns).T).tolist() == [[1] * 4, [2] * 4, [3] * 4]
    assert tokens[-1] == AUDIO_EOS
    assert state.finish_reason == "length"


def test_repetition_aware_sampling_counts_the_codes_of_the_segment_without_bos_and_eos():
    config = make_config(audio_num_codebooks=3)
    rules = Rules(config, SamplingOptions(do_sample=False, ras_win_len=7, ras_win_max_num_repeat=2))
    logits = torch.full((3, V + 2), -20.0)
    logits[:, 4], logits[:, 5] = 20.0, 19.0
    state, drawn = RowState(AUDIO_OUT_BOS, 100), []
    for _ in range(40):
        token, sampled = next_step(state, torch.zeros(320), logits, rules)
        state, column = advance(state, token, sampled, rules)
        drawn.append(column[0])
    assert drawn[:3] == [BOS, 4, 4]
    assert 5 in drawn  # only a redraw returns the second most likely id
    assert len(state.recent) == 7


def test_an_eos_is_never_taken_for_a_repetition():
    rules = Rules(
        make_config(audio_num_codebooks=3), SamplingOptions(do_sample=False, ras_win_len=7, ras_win_max_num_repeat=1)
    )
    recent = ((EOS, 1, EOS), (EOS, EOS, EOS))
    logits = one_hot([EOS] * 3, V + 2)
    for seed in range(20):
        state = RowState(
            AUDIO_OUT, 100, seed, delay_state=DelayState(3, BOS, EOS, num_columns=9, total_columns=11), recent=recent
        )
        assert next_step(state, torch.zeros(320), logits, rules)[1] == [EOS] * 3


def test_the_window_is_emptied_when_a_segment_closes():
    aware = SamplingOptions(do_sample=False, ras_win_len=7, ras_win_max_num_repeat=7)
    script = [0, [1] * 3, [EOS, 1, 1], [1] * 3, [1] * 3, 0]
    assert run_script(script[:4], sampling=aware)[2].recent
    assert run_script(script, sampling=aware)[2] == RowState(AUDIO_EOS, 100, steps=6)
