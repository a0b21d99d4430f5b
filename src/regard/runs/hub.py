"""A trained segmentation on the Hugging Face hub."""

from pathlib import Path

from regard.backbones.weights import MODEL_FILE
from regard.errors import InputError, first_line
from regard.runs.exported import CONFIG_FILE
from regard.runs.run import Run, load_run


def from_pretrained(name: str | Path, device: str | None = None, revision: str | None = None) -> Run:
    """A segmentation in a folder, or on the Hugging Face hub ("owner/name"): it is fetched once, and kept by the hub.

    revision: a branch, tag or commit. A path that exists is never looked up on the hub. For a private one, the token is
    that of HF_TOKEN, or of `hf auth login`. Raises InputError where it cannot be had.
    """
    if Path(name).exists():
        return load_run(name, device)
    from huggingface_hub import snapshot_download

    _check_name(str(name))
    try:
        folder = snapshot_download(str(name), revision=revision, allow_patterns=[MODEL_FILE, CONFIG_FILE])
    except Exception as error:  # the hub, the network and the file system each raise their own
        raise InputError(f"cannot fetch {name} from the Hugging Face hub: {first_line(error)}") from error
    return load_run(folder, device)


def check_push(name: str) -> None:
    """InputError where pushing to this repository would fail for its name, or for want of a token."""
    from huggingface_hub import get_token

    _check_name(name)
    if not get_token():
        raise InputError("no token for the Hugging Face hub: set HF_TOKEN, or log in with hf auth login")


def push(folder: Path, name: str) -> str:
    """Upload a folder of `save_pretrained` to the hub; returns its address. A new repository is private.

    The token is that of HF_TOKEN, or of `hf auth login`; it is written nowhere.
    """
    from huggingface_hub import HfApi

    check_push(name)
    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add a segmentation made with regard")
    except Exception as error:  # the hub and the network each raise their own
        raise InputError(
            f"cannot push to {name} ({first_line(error)}); what was to be pushed is in {folder}"
        ) from error
    return str(address)


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise InputError(f"{name} is neither a folder nor a name on the Hugging Face hub, which is OWNER/NAME")
