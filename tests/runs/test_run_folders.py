"""The folder of one run: one process at a time, one data set, and nothing left of what never began."""

import filelock
import pytest

from regard.errors import InputError
from regard.runs.folders import LOCK_FILE, run_folder

FIRST = {"lr": 1.0, "images": {"train": 8, "val": 2}, "files": "a"}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"lr": 2.0}, "with other settings .lr."),
        ({"images": {"train": 9, "val": 2}, "files": "b"}, "changed since: 8 train, 2 val then, 9 train, 2 val now"),
        ({"files": "b"}, "changed since: as many images, but other files"),
    ],
)
def test_a_run_goes_on_with_the_same_settings_and_data_alone(tmp_path, second, said) -> None:
    with run_folder(tmp_path / "run", FIRST, "run.json"):
        pass
    with run_folder(tmp_path / "run", FIRST, "run.json"):
        pass
    with pytest.raises(InputError, match=said), run_folder(tmp_path / "run", FIRST | second, "run.json"):
        pass


def test_two_processes_do_not_write_into_one_folder(tmp_path) -> None:
    with run_folder(tmp_path / "run", FIRST, "run.json") as folder:
        with pytest.raises(InputError, match="another process writes into"), run_folder(folder, FIRST, "run.json"):
            pass
        assert (folder / LOCK_FILE).exists()
    assert not (folder / LOCK_FILE).exists()
    with filelock.FileLock(folder / LOCK_FILE, timeout=0):  # a lock that a killed process left holds nobody up
        pass
    with run_folder(folder, FIRST, "run.json"):
        pass


def test_an_error_before_the_first_checkpoint_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "a" / "run", FIRST, "run.json"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
