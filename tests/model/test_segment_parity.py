"""Tests of how audio segments begin and end, on scripted ids: our rules, those of the original, and those of
transformers.
"""

import pytest
import torch
from oracle import (
    AUDIO_OUT_BOS,
    BOS,
    EOS,
    K,
    V,
    collate,
    generate_columns,
    make_config,
    make_prompt,
    original_columns,
)
from parity import CODES, scripted

from higgs_audio.delay import apply_delay, revert_delay
from higgs_audio.generation.loop import generate
from higgs_audio.generation.row_state import RowState, advance, next_step
from higgs_audio.generation.rules import Rules
from higgs_audio.generation.sampling import SamplingOptions

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # warnings of transformers

# The state machines, on scripted ids


def original_frames(columns):
    """Returns the codes [K, F] of the original: reverts the delay, clips bos and eos, drops the first and the last
    frame."""
    length = len(columns) - K + 1
    rows = [[min(columns[k + n][k], V - 1) for n in range(length)] for k in range(K)]
    return [row[1:-1] for row in rows]


def transformers_columns(script, limit=100):
    """Applies the rules of transformers: an eos anywhere starts the closing ramp in codebook 0 one step later, until
    all are eos."""
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
    """Returns the columns of our state machine for the same ids, and whether the segment ended."""
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
    """Returns random codes, with an eos in column 12 in each codebook of `ends`."""
    script = torch.randint(0, V, (length, K), generator=torch.Generator().manual_seed(seed)).tolist()
    for codebook in ends:
        script[12][codebook] = EOS
    return script


ENDS = pytest.mark.parametrize("ends", [(0,), (3,), (7,), (2, 5), ()], ids=str)


@ENDS
def test_columns_and_frames_are_those_of_the_original(ends):
    script = write_script(ends)
    columns, ended = our_columns(script, limit=30)
    assert (columns, ended) == original_columns(script[:30])
    ours, theirs = revert_delay(torch.tensor(columns).T), torch.tensor(original_frames(columns))
    if ends == (2, 5):  # ours drops the frame in which codebook 5 ends, the original clips its eos to code 1023
        assert (ours.shape[1], theirs.shape[1]) == (12 - 5 - 1, 12 - 2 - 1)
        assert theirs[5, 6] == V - 1
    else:  # without an eos, ours keeps the last complete frame too
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
        assert result == original_columns(script[:40])
        endings.add(result[1])
    assert endings == {True, False}


@ENDS
def test_both_loops_follow_their_rules_from_end_to_end(model, oracle_model, ends):
    batch, script = collate([make_prompt(range(20, 32))]), write_script(ends)
    with scripted(model, [*script, [0] * K, [0] * K]):
        ours = generate(model, **batch, max_new_tokens=30, do_sample=False)[1][0].T.tolist()
    with scripted(oracle_model, script):
        theirs = generate_columns(oracle_model, batch, 30)[0].tolist()
    assert ours == original_columns(script[:30])[0]
    assert theirs == transformers_columns(script, limit=30)


def test_transformers_ramps_from_codebook_0_and_decodes_a_frame_with_an_eos_in_it(stack):
    """Its last frame has eos clipped to 1023, a click of 40 ms; ours ends with the last complete frame."""
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
            decoded = theirs.batch_decode(torch.tensor(in_theirs)[None])[0]
        torch.testing.assert_close(decoded, wanted, rtol=0, atol=1e-5)
        own = ours.decode([0], [torch.tensor(in_ours).T]).audio
        assert len(own) == num_ours * 960


def _named(script):
    """Converts bos and eos of a codebook of 1024 codes to those of the tiny codebook, which the rules above use."""
    return [[id - CODES + V if id >= CODES else id // 60 for id in row] for row in script]


def _renamed(columns):
    return [[id + CODES - V if id >= V else id * 60 for id in column] for column in columns]


def test_a_whole_segment_decodes_to_the_samples_of_transformers(stack):
    codes = torch.randint(0, CODES, (K, 9), generator=torch.Generator().manual_seed(0))
    segment = apply_delay(codes, CODES, CODES + 1)
    theirs = stack.their_processor.decode(segment.T[None])
    ours = torch.from_numpy(stack.processor.decode([0], [segment]).audio)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_empty_audio_is_none_in_ours_and_an_index_error_in_transformers(stack):
    with pytest.raises(IndexError):
        stack.their_processor.batch_decode(torch.zeros(1, 4, K, dtype=torch.long))
    assert stack.processor.decode([0], []).audio is None
