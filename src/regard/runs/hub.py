"""The Hugging Face hub: what is exported goes there, and `run.load_run` takes it from there."""

from pathlib import Path

from regard.errors import InputError, first_line
from regard.files import on_hub
from regard.runs.run import Run, load_run


def from_pretrained(name: str | Path, device: str | None = None, revision: str | None = None) -> Run:
    """As `load_run`, by the name that others' libraries have for it."""
    return load_run(name, device, revision)


def check_push(name: str) -> None:
    """InputError where pushing to this repository would fail for its name, or for want of a token."""
    from huggingface_hub import get_token

    if on_hub(name) != (name, None):
        raise InputError(f"{name} is no place to push to on the Hugging Face hub: OWNER/NAME alone would work")
    if not get_token():
        raise InputError("no token for the Hugging Face hub: set HF_TOKEN, or log in with hf auth login")


def push(folder: Path, name: str) -> str:
    """Upload a folder for the hub, which `export` made; returns its address. A new repository is private.

    The token is that of HF_TOKEN, or of `hf auth login`; it is written nowhere.
    """
    from huggingface_hub import HfApi

    check_push(name)
    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add a model made with regard")
    except Exception as error:  # the hub and the network each raise their own
        raise InputError(
            f"cannot push to {name} ({first_line(error)}); what was to be pushed is in {folder}"
        ) from error
    return str(address)
