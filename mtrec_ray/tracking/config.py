"""Settings of tracking."""

import importlib.util

from pydantic import field_validator

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute


class TrackingConfig(Config):
    """Where figures go, in addition to metrics.jsonl and tensorboard/ in the run's folder."""

    mlflow_uri: str | None = None
    """MLflow tracking server, e.g. http://mlflow:5000 or sqlite:///mlflow.db; needs `mtrec_ray[mlflow]`."""

    @field_validator("mlflow_uri")
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        """Workers run in other folders."""
        prefix = "sqlite:///" if uri and uri.startswith("sqlite:///") else ""
        return uri and prefix + absolute(uri.removeprefix(prefix))


def check_tracking(config: TrackingConfig) -> None:
    """UserError if figures should go to MLflow and it is not installed."""
    if config.mlflow_uri and importlib.util.find_spec("mlflow") is None:
        raise UserError(f"tracking.mlflow_uri = {config.mlflow_uri!r}: `pip install 'mtrec_ray[mlflow]'` on every node")
