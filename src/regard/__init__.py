"""Learn image backbones without labels, see and score what their heads look at, and segment with it.

Public names are imported when first used, so that `import regard` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.backbones import AttentionMap, Features, build_backbone
    from regard.runs.run import load_run

__all__ = ["AttentionMap", "Features", "build_backbone", "load_run"]

_HOMES = {
    "build_backbone": "backbones",
    "AttentionMap": "backbones",
    "Features": "backbones",
    "load_run": "runs.run",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"regard.{_HOMES[name]}"), name)
