"""Uploads a folder to a repository of the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

UPLOAD_OPTIONS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


def upload(folder: str | Path, repo_id: str, options: Mapping[str, Any]) -> str:
    """Uploads all files of a folder to a repository, which is created if it does not exist.

    Args:
        folder: the folder to upload.
        repo_id: "org/name".
        options: any of `UPLOAD_OPTIONS`.

    Returns:
        The URL of the commit.
    """
    api = HfApi(token=options.get("token"))
    repository = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
    rest = {name: value for name, value in options.items() if name not in ("private", "token")}
    message = rest.pop("commit_message", None) or "Upload processor"
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, **rest))
