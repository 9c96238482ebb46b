"""Tests of the delay pattern: its documented layout, and its incremental implementation against that for whole
segments.
"""

import random

import pytest
import torch
from oracle import BOS, EOS, V, original_columns

from higgs_audio.delay import IGNORE_INDEX, DelayState, FrameAligner, apply_delay, delay_labels, revert_delay
from higgs_audio.errors import CodesError


def make_codes(num_codebooks, num_frames, seed=0):
    return torch.randint(0, V, (num_codebooks, num_frames), generator=torch.Generator().manual_seed(seed))


def run_script(script, num_codebooks):
    """Pushes sampled columns into a DelayState until the segment or the script ends; returns its columns and state."""
    state, columns = DelayState(num_codebooks, BOS, EOS), []
    for sampled in script:
        column, state = state.push(sampled)
        columns.append(column)
        if state.is_finished:
            break
    return columns, state


def random_script(rng, num_codebooks, eos_odds):
    """Returns [n, K] sampled columns; eos can be in any cell."""
    length = rng.randint(1, 40)
    return [[EOS if rng.random() < eos_odds else rng.randrange(V) for _ in range(num_codebooks)] for _ in range(length)]


def push_all(columns, num_codebooks):
    aligner = FrameAligner(num_codebooks, BOS, EOS)
    return [aligner.push(column) for column in columns]


def test_a_delayed_segment_has_the_documented_layout():
    assert apply_delay(torch.tensor([[0, 3], [1, 4], [2, 5]]), BOS, EOS).tolist() == [
        [BOS, 0, 3, EOS, EOS, EOS],
        [BOS, BOS, 1, 4, EOS, EOS],
        [BOS, BOS, BOS, 2, 5, EOS],
    ]


@pytest.mark.parametrize("num_frames", [0, 1, 2, 100])
@pytest.mark.parametrize("num_codebooks", [1, 2, 8])
def test_revert_delay_inverts_apply_delay(num_codebooks, num_frames):
    codes = make_codes(num_codebooks, num_frames)
    delayed = apply_delay(codes, BOS, EOS)
    assert delayed.shape == (num_codebooks, num_frames + num_codebooks + 1)
    assert torch.equal(revert_delay(delayed), codes)


@pytest.mark.parametrize("num_frames", [0, 1, 30])
def test_labels_train_every_code_and_one_eos_per_codebook(num_frames):
    codes = make_codes(8, num_frames)
    labels, delayed = delay_labels(codes, EOS), apply_delay(codes, BOS, EOS)
    trained = labels != IGNORE_INDEX
    assert torch.equal(labels[trained], delayed[trained])
    assert trained.sum(dim=1).tolist() == [num_frames + 1] * 8
    assert (labels == EOS).sum(dim=1).tolist() == [1] * 8
    assert not (labels == BOS).any()


def test_a_segment_cut_before_any_eos_keeps_every_complete_frame():
    delayed = apply_delay(make_codes(8, 20), BOS, EOS)[:, :15]
    assert torch.equal(revert_delay(delayed), make_codes(8, 20)[:, : 15 - 8])


def test_a_segment_shorter_than_the_delay_has_no_frames():
    delayed = apply_delay(make_codes(8, 20), BOS, EOS)
    assert [revert_delay(delayed[:, :length]).shape for length in (1, 5, 8)] == [(8, 0)] * 3


@pytest.mark.parametrize("first", [0, 1, 3, 7])
def test_eos_first_in_codebook_k_of_column_t_gives_t_plus_8_minus_k_columns_and_t_minus_k_minus_1_frames(first):
    t = 12
    script = [[1] * 8 for _ in range(40)]
    script[t][first] = EOS
    columns, _ = run_script(script, 8)
    assert len(columns) == t + 8 - first
    assert revert_delay(torch.tensor(columns).T).shape == (8, t - first - 1)


def test_forced_eos_keep_the_sampled_codes_on_the_diagonal():
    columns, state = run_script([[9, 9, 9], [1, 9, 9], [2, 3, 9], [EOS, 4, 5], [6, 7, 8], [9, 10, 11]], 3)
    assert columns == [
        (BOS, BOS, BOS),
        (1, BOS, BOS),
        (2, 3, BOS),
        (EOS, 4, 5),
        (EOS, 7, 8),
        (EOS, EOS, 11),
    ]
    assert state.is_finished
    assert state.num_frames == 2
    assert revert_delay(torch.tensor(columns).T).tolist() == [[1, 2], [3, 4], [5, 8]]


def test_two_eos_in_one_column_end_by_the_lower_and_cut_the_audio_at_the_higher():
    script = [[1] * 8 for _ in range(40)]
    script[12][2] = script[12][5] = EOS
    columns, _ = run_script(script, 8)
    assert len(columns) == 12 + 8 - 2
    assert columns[12] == (EOS, EOS, EOS, 1, 1, EOS, 1, 1)
    assert revert_delay(torch.tensor(columns).T).shape == (8, 12 - 5 - 1)


@pytest.mark.parametrize("num_codebooks", [1, 2, 8])
@pytest.mark.parametrize("eos_odds", [0, 0.02, 0.2])
def test_ramp_aligner_and_revert_agree_on_random_scripts_cut_anywhere(num_codebooks, eos_odds):
    rng = random.Random(0)
    for _ in range(60):
        script = random_script(rng, num_codebooks, eos_odds)
        columns, _ = run_script(script, num_codebooks)
        expected, _ = original_columns(script, num_codebooks)
        assert columns == [tuple(column) for column in expected[: len(columns)]]
        pushed = push_all(columns, num_codebooks)
        frames = [frame for frame in pushed if frame is not None]
        assert frames == revert_delay(torch.tensor(columns).T).T.tolist()
        assert all(code < BOS for frame in frames for code in frame)
        # Frame f is returned with column f + K, the earliest possible: none with the first K columns, then no gap.
        assert pushed[num_codebooks : num_codebooks + len(frames)] == frames


def test_later_columns_never_change_a_returned_frame():
    rng = random.Random(1)
    for _ in range(60):
        columns, _ = run_script(random_script(rng, 8, 0.02), 8)
        frames = [frame for frame in push_all(columns, 8) if frame is not None]
        for length in range(1, len(columns) + 1):
            cut = revert_delay(torch.tensor(columns[:length]).T).T.tolist()
            assert frames[: len(cut)] == cut


def test_a_resumed_state_equals_the_state_that_pushed_the_same_columns():
    rng = random.Random(2)
    for _ in range(60):
        script = random_script(rng, 8, 0)
        script[rng.randrange(len(script))][rng.randrange(8)] = EOS
        columns, state = run_script(script, 8)
        assert DelayState(8, BOS, EOS).resume(columns) == state


def test_a_frame_with_a_sampled_bos_cuts_the_segment():
    delayed = apply_delay(make_codes(8, 20), BOS, EOS)
    delayed[3, 9] = BOS
    assert revert_delay(delayed).shape == (8, 9 - 3 - 1)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(8), torch.zeros(8, 2), torch.zeros(1, 8, 2, dtype=torch.long), torch.full((8, 2), BOS)]
)
def test_apply_delay_rejects_values_that_are_not_codes(wrong):
    with pytest.raises(CodesError):
        apply_delay(wrong, BOS, EOS)


def test_revert_delay_rejects_a_segment_without_its_bos_column():
    with pytest.raises(CodesError, match="bos column"):
        revert_delay(apply_delay(make_codes(8, 20), BOS, EOS)[:, 3:])
    with pytest.raises(CodesError, match="bos column"):
        revert_delay(torch.zeros(8, 0, dtype=torch.long))


def test_the_aligner_rejects_a_column_with_the_wrong_number_of_codebooks():
    with pytest.raises(CodesError, match="7 cells"):
        FrameAligner(8, BOS, EOS).push([0] * 7)
