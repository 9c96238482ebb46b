"""Tests of forced alignment."""

import itertools

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertForCTC

from higgs_audio.data.align import align, nearest_phone, viterbi
from higgs_audio.data.manifest import read_manifests
from higgs_audio.data.phones import phones


def collapse(path):
    """Returns the labels that a CTC path emits: repeats are merged, blanks (0) removed."""
    return [label for label, _ in itertools.groupby(path) if label]


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2]], ids=str)
@pytest.mark.parametrize("steps", [4, 6])
def test_viterbi_finds_the_best_of_all_paths(ids, steps):
    for seed in range(5):
        scores = np.random.default_rng((seed, steps)).normal(size=(steps, 3)) * 2
        log_probs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        paths = [path for path in itertools.product(range(3), repeat=steps) if collapse(path) == ids]
        totals = [sum(log_probs[t, label] for t, label in enumerate(path)) for path in paths]
        found, total = viterbi(log_probs, ids)
        assert total == pytest.approx(max(totals))
        assert tuple(ids[i] if i >= 0 else 0 for i in found) == paths[int(np.argmax(totals))]
        assert list(found[found >= 0]) == sorted(found[found >= 0])


def test_more_phones_than_steps_are_an_error_and_equal_neighbors_need_a_blank_between_them():
    log_probs = np.zeros((3, 5))
    for ids in ([1, 2, 3, 4], [1, 1, 2]):
        with pytest.raises(ValueError, match="do not fit into 3 frames"):
            viterbi(log_probs, ids)


def test_a_text_of_more_than_127_phones_is_aligned():
    """Earlier, state numbers above 127 overflowed in the difference of a Python int and an int8."""
    ids = [1 + n % 5 for n in range(150)]
    log_probs = np.full((300, 7), -9.0)
    log_probs[np.arange(0, 300, 2), ids] = 0.0
    log_probs[1::2, 0] = 0.0
    path, total = viterbi(log_probs, ids)
    assert total == 0.0
    assert path[::2].tolist() == list(range(150))
    assert (path[1::2] == -1).all()


def test_blanks_become_the_phone_nearest_in_time():
    path = np.array([-1, -1, 0, -1, -1, -1, 1, 1, -1, 2, -1, -1])
    assert nearest_phone(path).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_an_alignment_has_one_phone_per_frame_in_order(tiny_teacher, corpus):
    clip = read_manifests(corpus)[0]
    model = HubertForCTC.from_pretrained(tiny_teacher).eval()
    waveform = torch.from_numpy(soundfile.read(clip.audio, dtype="float32")[0])
    num_frames = (len(waveform) + 841) // 960
    alignment = align(model, waveform, phones(clip.text), num_frames)
    assert alignment.frames.shape == (num_frames,)
    assert (np.diff(alignment.frames.astype(int)) >= 0).all()
    assert alignment.frames.max() < len(phones(clip.text))
    assert alignment.score < 0
