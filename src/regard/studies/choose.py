"""Which plan is meant: a preset or a study file, as a comparison or varied."""

from collections.abc import Sequence
from dataclasses import replace

from regard.errors import InputError
from regard.settings import StudyOptions
from regard.studies.ablate import ablation
from regard.studies.plan import Plan, spread
from regard.studies.plan_file import read_plan
from regard.studies.presets import preset


def comparison(
    options: StudyOptions, baselines: bool = False, label_fractions: Sequence[float] | None = None, frozen: str = "no"
) -> Plan:
    """The plan of `regard compare`.

    baselines:       of a preset, keep those too.
    label_fractions: every configuration with these shares of the training masks; None: as the plan says.
    frozen:          "no", "yes" or "both".

    Raises InputError where a study file says what an option says too.
    """
    if options.study is not None and baselines:
        raise InputError("--study says what is compared: leave out --baselines, and say it there")
    plan = _start(options)
    if options.study is None and not baselines:
        kept = tuple(c for c in plan.configurations if not c.baseline)
        names = {c.name for c in kept}
        questions = tuple(pair for pair in plan.questions if names.issuperset(pair))
        plan = replace(plan, configurations=kept, questions=questions)
    if label_fractions is None and frozen == "no":
        return plan
    if plan.axes:
        varies = ", ".join(plan.axes)
        raise InputError(f"{options.study} varies {varies} itself: leave out --label_fractions and --frozen")
    return spread(plan, label_fractions, {"no": None, "yes": (True,), "both": (False, True)}[frozen])


def variation(options: StudyOptions, axes: Sequence[str], base: str, grid: bool) -> Plan:
    """The plan of `regard ablate`. axes: `fusion`, or with values, `lr=0.1,0.01`.

    Raises InputError for an axis that is named twice, and as `ablate.ablation`.
    """
    values: dict[str, list[str] | None] = {}
    for text in axes:
        name, _, written = text.partition("=")
        if name in values:
            raise InputError(f"axis {name} is given twice: give all of its values at once, as {name}=A,B")
        values[name] = written.split(",") if written else None
    return ablation(_start(options), base, values, grid)


def _start(options: StudyOptions) -> Plan:
    if options.cluster_options and options.cluster is None:
        raise InputError("--cluster_options are for jobs of a cluster: add --cluster slurm, or leave them out")
    if options.study is None:
        plan = preset(options.preset, options.size)
    elif options.size or options.preset != StudyOptions.preset:
        option = "size" if options.size else "preset"
        raise InputError(f"--study says what is trained: leave out --{option}, and say it there")
    else:
        plan = read_plan(options.study)
    plan = replace(plan, seeds=tuple(range(options.seeds))) if options.seeds else plan
    plan = replace(plan, groups=options.groups) if options.groups else plan
    each = options.pretrain_each_seed
    return plan if each is None else replace(plan, pretrain_each_seed=each)
