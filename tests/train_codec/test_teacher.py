"""Tests of training the semantic teacher."""

from corpus import TEXTS, write_corpus
from runs import check_resumed, teacher_recipe

from higgs_audio.train_codec.teacher import train_teacher


def test_a_teacher_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(corpus, tmp_path):
    """Killed once in the steps on clips with phone times, and once in the steps on all clips."""
    check_resumed(tmp_path, train_teacher, teacher_recipe(corpus), kills=(4, 4))


def test_a_teacher_run_without_phone_times_resumes_at_the_same_batch(tmp_path):
    corpus = write_corpus(tmp_path, [(f"clip-{n}", {"text": text}) for n, text in enumerate(TEXTS)])
    check_resumed(tmp_path, train_teacher, teacher_recipe(corpus), kills=(4,))
