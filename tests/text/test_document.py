"""Tests of documents: Markdown, HTML, SSML and plain text as blocks."""

import pytest

from higgs_audio.errors import TextError
from higgs_audio.text import split_utterances
from higgs_audio.text.document import read_document
from higgs_audio.text.utterances import read_utterances


def blocks(text):
    return [(block.text, block.kind) for block in read_document(text)]


def words(text):
    return " ".join(block.text for block in read_document(text))


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("### Heading\n", "Heading"),
        ("Some **bold**, *slanted* and __strong__ words", "Some bold, slanted and strong words"),
        ("A [link](https://example.com/a_b) here", "A link here"),
        ("An ![image](x.png) here", "An image here"),
        ("~~gone~~ is said", "gone is said"),
        ("> a quote\n> of two lines", "a quote of two lines"),
        ("Use `x = 1` here", "Use x = 1 here"),
        ("```py\nprint(1)\n```", "print(1)"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b 1, 2"),
        ("**Salt** &amp; pepper", "Salt & pepper"),
        ("**a** <b>c</b><br>d", "a c d"),
        ("Title\n=====\n\ntext", "Title text"),
        ("1. *one*\n2. two", "one two"),
        ("a <b>bold</b> word", "a bold word"),
        ("Salt &amp; pepper &lt; 3", "Salt & pepper < 3"),
        ("<p>One</p><script>alert(1)</script><p>two</p>", "One two"),
        ("<ul><li>a<li>b</ul>", "a b"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "1, 2"),
        ("<!-- no --><b>yes</b>", "yes"),
        ("<unknown>word</unknown> <b>x</b>", "<unknown>word x"),
    ],
)
def test_the_words_of_markup_are_read_and_its_marks_are_not(text, spoken):
    assert words(text) == spoken


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4 is 24",
        "snake_case and __init__.py",
        "C# and F# are languages, and we are #1",
        "a < b and c > d",
        "write to <joe@example.org>",
        "1. is not a list in running text",
        "- Hello, he said.",
        "[laugh] that is funny [SPEAKER0]",
        "5 > 3 & 3 < 5",
        "f(x) [1] (2)",
        "it costs ~5 dollars, or ~6",
        "AT&T and R&D;",
    ],
)
def test_ordinary_text_is_not_taken_for_markup(text):
    assert blocks(text) == [(text, "paragraph")]


def test_headings_items_and_paragraphs_have_boundaries_of_their_kind():
    text = "# One\n\nText.\n\n- a\n- b\n  - c\n\n## Two\n\nEnd."
    kinds = [("One", "heading"), ("Text.", "paragraph"), ("a", "item"), ("b", "item"), ("c", "paragraph")]
    assert blocks(text) == [*kinds, ("Two", "heading"), ("End.", "paragraph")]
    html = "<h1>One</h1><p>Text.</p><ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><h2>Two</h2><p>End.</p>"
    assert blocks(html) == blocks(text)


def test_short_lines_without_a_mark_are_items_and_wrapped_lines_are_not():
    assert blocks("Milk\nBread\nTwo eggs") == [("Milk", "item"), ("Bread", "item"), ("Two eggs", "paragraph")]
    wrapped = (
        "The road went over the hill and down to the old bridge near\nParis, where we had lunch and a glass\nof wine."
    )
    assert blocks(wrapped) == [(" ".join(wrapped.split()), "paragraph")]
    heading = "The Old Bridge\nThe road went over the hill and down to the old bridge, where we had lunch."
    assert blocks(heading)[0] == ("The Old Bridge", "heading")


def test_a_word_that_is_divided_at_the_end_of_a_line_is_read_as_one():
    assert (
        words("It was impos-\nsible to see the well-known\nhouse.") == "It was impossible to see the well-known house."
    )
    assert words("the state-\nof-the-art lab") == "the state- of-the-art lab"


def test_blank_lines_separate_paragraphs_with_and_without_inline_tags():
    assert blocks("One\n\ntwo") == blocks("<b>One</b>\n\ntwo") == [("One", "paragraph"), ("two", "paragraph")]


def test_ssml_breaks_paragraphs_substitutions_and_spelled_words_are_obeyed():
    text = (
        '<speak><p>Go to <sub alias="Saint">St</sub> Ives.</p>'
        '<s>Spell <say-as interpret-as="characters">abc</say-as></s><break time="1.5s"/>'
        'and <say-as interpret-as="digits">042</say-as><break strength="weak"/>'
        'the <say-as interpret-as="ordinal">3</say-as></speak>'
    )
    expected = [
        ("Go to Saint Ives.", "paragraph", None),
        ("Spell A B C", "sentence", 1.5),
        ("and 0 4 2", "sentence", 0.2),
        ("the 3rd", "paragraph", None),
    ]
    assert [(block.text, block.kind, block.pause) for block in read_document(text)] == expected


@pytest.mark.parametrize(
    ("ssml", "message"),
    [
        ("<prosody rate='slow'>x</prosody>", "<prosody>, which is not supported"),
        ("<emphasis>x</emphasis>", "<emphasis>, which is not supported"),
        ("<audio src='x'/>", "<audio>, which is not supported"),
        ("<break time='11s'/>x", "0s to 10s"),
        ("<break time='-1s'/>x", "0s to 10s"),
        ("<break time='soon'/>x", "0s to 10s"),
        ("<break strength='loud'/>x", "strength='loud'"),
        ("<sub>x</sub>", "<sub> without alias"),
        ("<say-as>x</say-as>", "<say-as> without interpret-as"),
        ("<say-as interpret-as='song'>x</say-as>", "interpret-as='song'"),
    ],
)
def test_ssml_that_is_not_supported_is_refused_by_name(ssml, message):
    with pytest.raises(TextError, match=message):
        read_document(f"<speak>{ssml}</speak>")


def test_entities_of_a_document_type_are_not_expanded():
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><p>&b;</p>'
    assert "hahaha" not in words(bomb)


def test_an_utterance_within_a_sentence_has_no_boundary_but_a_clause():
    text = (
        "One two three four five six, seven eight nine ten eleven twelve thirteen. And then they all went home again."
    )
    assert [utterance.boundary for utterance in read_utterances(text, 60)] == ["clause", "sentence", "paragraph"]


def test_a_document_without_words_has_no_utterances():
    assert split_utterances("<script>word</script>") == []
