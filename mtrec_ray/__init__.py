"""Multi-territory propensity models and selective fairness for recommendation, on Ray.

Every job is a function, as in `mtrec_ray.train_propensity(lake="lake", name="mtl")`; see `mtrec_ray.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtrec_ray.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import the jobs at their first use: `import mtrec_ray` alone takes no time."""
    if not name.startswith("_"):
        api = import_module("mtrec_ray.api")
        if name in api.CONFIGS:
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("mtrec_ray.api").CONFIGS})
