"""MlTr: multi-label image classification with a window transformer.

Public names are imported on first use, so that ``import mltr`` is fast.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltr import data, losses, metrics
    from mltr.export.hub import push_to_hub
    from mltr.network.model import create_model, list_models
    from mltr.predict.predictor import load

__version__ = "0.1.0"
__all__ = ["create_model", "data", "list_models", "load", "losses", "metrics", "push_to_hub"]

_HOMES = {
    "create_model": "mltr.network.model",
    "list_models": "mltr.network.model",
    "load": "mltr.predict.predictor",
    "push_to_hub": "mltr.export.hub",
}

# Disable telemetry of libraries, which read these variables on import.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_UPDATE_DOWNLOAD_COUNTS="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    WANDB_ERROR_REPORTING="false",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"mltr.{name}")
    raise AttributeError(f"module 'mltr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
