"""The one schema: its bounds and types, and that all that reads it follows it."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from jaxtyping import config as jaxtyping_config

import regard
from regard.cli import COMMANDS
from regard.cli.parser import _groups
from regard.errors import InputError
from regard.settings import (
    FUSIONS,
    HEADS,
    LOSSES,
    METHODS,
    PRESETS,
    VIEWS,
    Guidance,
    Inference,
    PretrainSettings,
    Scoring,
    SegmentSettings,
    changed,
    check_value,
    find,
    kinds_of,
    options,
)

SINGLE = [command for command in COMMANDS.values() if callable(command)]


@pytest.mark.parametrize("command", SINGLE, ids=lambda command: command.__name__)
def test_no_two_options_of_a_command_share_a_name_and_all_have_words(command) -> None:
    settings = [one for kind in _groups(command).values() for one in options(kind)]
    plain = command.__annotations__.keys() - _groups(command).keys()
    names = Counter([*(one.name for one in settings), *plain])
    assert [name for name, count in names.items() if count > 1] == []
    assert all(len(one.metadata["words"]) > 5 for one in settings)


@pytest.mark.parametrize(
    "names", [FUSIONS, HEADS, LOSSES, METHODS, PRESETS, VIEWS], ids=lambda names: next(iter(names))
)
def test_every_name_leads_to_what_it_names(names) -> None:
    for name in names:
        assert callable(find("name", name, names))
    with pytest.raises(InputError, match="unknown name 'nothing like it'"):
        find("name", "nothing like it", names)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SegmentSettings, {"epochs": 0}, "epochs 0 is out of bounds: take 1 or more"),
        (SegmentSettings, {"lr": math.nan}, "lr nan is out of bounds: take 0 or more"),
        (SegmentSettings, {"lr": math.inf}, "lr inf is out of bounds"),
        (SegmentSettings, {"layer_decay": 0.0}, "layer_decay 0 is out of bounds: take a number above 0, up to 1"),
        (SegmentSettings, {"warmup": 1.0}, "warmup 1 is out of bounds: take 0 or more, below 1"),
        (SegmentSettings, {"size": 10**6}, "size 1,000,000 is out of bounds: take 1 or more, up to 32,767"),
        (SegmentSettings, {"epochs": 10**18}, r"epochs 1.0e\+18 is out of bounds: take 1 or more, up to 1,000,000"),
        (SegmentSettings, {"epochs": 10**400}, r"epochs 1.0e\+400 is out of bounds"),
        (
            SegmentSettings,
            {"weight_decay": 1e300},
            r"weight_decay 1e\+300 is out of bounds: take 0 or more, up to 1,000",
        ),
        (SegmentSettings, {"layers": (0, 2**40)}, r"layers 1,099,511,627,776 is out of bounds"),
        (Scoring, {"seed": 2**32}, "seed 4,294,967,296 is out of bounds: take 0 or more, up to 4,294,967,295"),
        (SegmentSettings, {"scale": (0.5, -1.0)}, "scale -1 is out of bounds: take a number above 0"),
        (SegmentSettings, {"fusion": "gat"}, "unknown fusion 'gat': did you mean 'gate'"),
        (SegmentSettings, {"batch_size": 16, "accumulate": 3}, "not 3 equal parts"),
        (SegmentSettings, {"average": "swa", "patience": 2}, "patience may stop before"),
        (SegmentSettings, {"average": "swa", "epochs": 4}, "take 5 epochs or more"),
        (SegmentSettings, {"freeze": True, "guide_sharpness": 1.0}, "freeze leaves it as it is"),
        (SegmentSettings, {"freeze": True, "layer_decay": 0.5}, "freeze leaves it as it is"),
        (PretrainSettings, {"method": "dion"}, "unknown method 'dion': did you mean 'dino'"),
        (Guidance, {"guide_diversity": -1.0}, "guide_diversity -1 is out of bounds: take 0 or more"),
        (Inference, {"window": 0}, "window 0 is out of bounds: take 1 or more"),
        (Inference, {"overlap": 1.0}, "overlap 1 is out of bounds: take 0 or more, below 1"),
        (Inference, {"overlap": -0.1}, "overlap -0.1 is out of bounds"),
        (Inference, {"scales": ()}, "no scale to look at"),
        (Inference, {"scales": (1.0, 0.0)}, "scales 0 is out of bounds: take 0.1 or more, up to 10"),
        (Inference, {"scales": (math.nan,)}, "scales nan is out of bounds"),
    ],
)
def test_a_value_out_of_its_bounds_is_one_line(kind, given, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        kind(**given)
    assert "\n" not in str(error.value)


BOUNDED = {one: kind for command in SINGLE for kind in _groups(command).values() for one in options(kind)}


@pytest.mark.parametrize("value", [10**18, -(10**18), math.nan, math.inf, -math.inf])
def test_every_setting_that_is_a_number_has_bounds(value: float) -> None:
    for option, kind in BOUNDED.items():
        of = kinds_of(kind)[option.name]
        if option.metadata["choices"] is None and {int, float} & {of, *get_args(of)}:
            with pytest.raises(InputError, match="out of bounds"):
                check_value(option, value)


@pytest.fixture
def _unchecked_types():
    """Types are checked under pytest alone, and before anything else."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked_types")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": 8.5}, "window should be a whole number or null, not 8.5"),
        ({"window": "8"}, "window should be a whole number or null, not '8'"),
        ({"overlap": "half"}, "overlap should be a number, not 'half'"),
        ({"overlap": None}, "overlap should be a number, not None"),
        ({"scales": 1.0}, "scales should be a list of numbers, not 1.0"),
        ({"scales": ("1",)}, r"scales should be a list of numbers, not \('1',\)"),
    ],
)
def test_a_value_of_another_type_is_one_line(given, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Inference(**given)
    assert "\n" not in str(error.value)


def test_values_of_files_are_read_as_their_types() -> None:
    read = changed(SegmentSettings(), {"lr": "1e-2", "layers": [2, -1], "freeze": "true", "crop": None})
    assert (read.lr, read.layers, read.freeze, read.crop) == (0.01, (2, -1), True, None)
    with pytest.raises(InputError, match="unknown setting 'lerning_rate'"):
        changed(SegmentSettings(), {"lerning_rate": 1})


def test_a_new_setting_is_one_line(tmp_path: Path) -> None:
    """The command line, config files, study files, ablations and sweeps know it by that line alone."""
    package = tmp_path / "regard"
    shutil.copytree(Path(regard.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    settings = package / "settings.py"
    line = "    patience: int | None ="
    text = settings.read_text()
    assert text.count(line) == 1
    settings.write_text(text.replace(line, f'    novelty: float = setting(0.25, "How new it is.", 0, 1)\n{line}'))
    (tmp_path / "config.yaml").write_text("novelty: 0.5")
    (tmp_path / "study.yaml").write_text("preset: tiny\nsegment: {novelty: 0.5}")
    (tmp_path / "space.yaml").write_text("novelty: [0.25, 0.5]")
    script = f"""
import json
from regard.cli import COMMANDS
from regard.cli.parser import arguments_of, build_parser, parsed
from regard.settings import StudyOptions
from regard.studies.choose import variation
from regard.studies.plan_file import read_plan
from regard.studies.space import read_space

parser = build_parser(COMMANDS)
read = lambda *words: arguments_of(*parsed(parser, COMMANDS, ["segment", "--data", "scenes", *words])[1:])["settings"]
varied = variation(StudyOptions(), ["novelty=0.25,0.75"], "bt-swin-gate", False)
print(json.dumps([
    read("--novelty", "0.75").novelty,
    read("--config", {str(tmp_path / "config.yaml")!r}).novelty,
    read_plan({str(tmp_path / "study.yaml")!r}).segment.novelty,
    [varied.settings(c).novelty for c in varied.configurations],
    list(read_space({str(tmp_path / "space.yaml")!r}).varied["novelty"]),
]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0.75, 0.5, 0.5, [0.25, 0.75], [0.25, 0.5]]
