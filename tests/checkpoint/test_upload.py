"""Tests of loading and uploading whole checkpoints with a local hub, in one process."""

import pytest
from hub import serve

from higgs_audio.checkpoint import DOWNLOADED
from higgs_audio.errors import OptionError
from higgs_audio.prompt.processor import HiggsAudioProcessor

COMMIT = "1" * 40
PROGRAM = """
import json, sys
from higgs_audio import HiggsAudio
tts = HiggsAudio.from_pretrained("someone/tiny", device="cpu")
model, processor = tts.model, tts.processor
model.push_to_hub("someone/pushed")
model.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="someone/saved")
print(json.dumps(processor.push_to_hub("org/pushed", token="t", commit_message="A voice")))
options = {"private": True, "token": "u", "commit_message": "Another voice"}
processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="org/saved", **options)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def hub(tiny_checkpoint, folder):
    """Returns the hub after the process has finished."""
    with serve({"someone/tiny": {COMMIT: tiny_checkpoint}}) as hub:
        printed = hub.run(folder / "cache", PROGRAM, folder / "model", folder / "processor")
    assert printed == [f"{hub.address}/org/pushed/commit/1"]
    return hub


def test_a_repository_is_looked_up_once_for_all_parts(tiny_checkpoint, hub):
    """Earlier, its name was resolved six times."""
    assert [revision for name, revision in hub.lookups if name == "someone/tiny"] == ["main"]
    small = {str(path.relative_to(tiny_checkpoint)) for pattern in DOWNLOADED for path in tiny_checkpoint.glob(pattern)}
    names = [name for repository, _, name in hub.downloads if repository == "someone/tiny"]
    assert sorted(names) == sorted({*small, "model.safetensors"})


def test_push_to_hub_uploads_the_files_of_save_pretrained(folder, hub):
    pushed, saved = hub.uploads["someone/pushed"].files, hub.uploads["someone/saved"].files
    written = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors"} <= set(written)
    for files in (pushed, saved):
        assert {name: files[name] for name in written} == written
    assert set(pushed) == set(saved)


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
