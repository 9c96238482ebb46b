"""Tests of uploads of a processor to a local hub."""

import pytest
from hub import serve

from higgs_audio.errors import OptionError
from higgs_audio.prompt.processor import HiggsAudioProcessor

UPLOAD = """
import json, sys
from higgs_audio import HiggsAudioProcessor
processor = HiggsAudioProcessor.from_pretrained(sys.argv[1])
print(json.dumps(processor.push_to_hub("org/pushed", token="t", commit_message="A voice")))
options = {"private": True, "token": "u", "commit_message": "Another voice"}
processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="org/saved", **options)
"""


@pytest.fixture(scope="module")
def hub(tiny_checkpoint, tmp_path_factory):
    """A hub with the same processor in two repositories."""
    folder = tmp_path_factory.mktemp("uploads")
    with serve() as hub:
        assert hub.run(folder / "cache", UPLOAD, tiny_checkpoint, folder / "saved") == [
            f"{hub.address}/org/pushed/commit/1"
        ]
    return hub


@pytest.mark.parametrize("name", ["org/pushed", "org/saved"])
def test_an_uploaded_processor_can_be_loaded(tiny_checkpoint, tmp_path, hub, name):
    processor = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    for file, content in hub.uploads[name].files.items():
        path = tmp_path / "loaded" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    loaded = HiggsAudioProcessor.from_pretrained(tmp_path / "loaded")
    assert loaded.config == processor.config
    assert loaded.audio_tokenizer is not None
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_upload_options_are_passed_on(hub):
    """`private=True` was ignored by `save_pretrained`: the repository became a public one."""
    assert not hub.uploads["org/pushed"].private
    assert hub.uploads["org/saved"].private
    assert [hub.uploads[name].messages for name in ("org/pushed", "org/saved")] == [["A voice"], ["Another voice"]]
    assert hub.tokens == {"t", "u"}


def test_an_unknown_upload_option_is_rejected_by_name(tiny_checkpoint):
    with pytest.raises(OptionError, match="did you mean 'private'"):
        HiggsAudioProcessor.from_pretrained(tiny_checkpoint).push_to_hub("org/voice", privat=True)
