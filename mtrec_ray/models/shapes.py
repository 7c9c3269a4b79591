"""Shapes of models, which are settings too; without torch, which `--help` does not load."""

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError

GroupBlockName = Literal["dense", "hierarchical"]


def check_block(what: str, block: Any) -> None:
    """UserError for a stored model, as in `run 'x'`, with a group block that is no more."""
    if block not in (None, "none", *get_args(GroupBlockName)):
        known = ", ".join(get_args(GroupBlockName))
        raise UserError(f"{what} has the group block {block!r}, which is no more (there are {known}): train it again")


class SequentialModelConfig(Config):
    """A sequential backbone; by default as paper B's authors ran it."""

    kind: Literal["sasrec", "bert4rec"] = "sasrec"
    """`sasrec` is causal; `bert4rec` is bidirectional with a mask token at the target."""
    history: int = Field(default=20, ge=2)
    """Last events that a user's vector is computed from."""
    width: int = Field(default=64, ge=1)
    """Width of vectors."""
    num_layers: int = advanced(1, ge=1)
    """Layers of attention and feed-forward."""
    num_heads: int = advanced(1, ge=1)
    """Attention heads; divides the width."""
    dropout: float = advanced(0.3, ge=0, lt=1)
    """Dropout probability, in steps of 1/256."""


class SequentialConfig(SequentialModelConfig):
    """A sequential backbone of a catalogue."""

    num_titles: int


class EliminatorConfig(Config):
    """Parts of an eliminator (paper B, 2.3; the transport is an addition), for ablations.

    Without prompts and without a personal prompt the adapters are left alone.
    """

    num_prompts: int = advanced(10, ge=0)
    """Prompt vectors in front of the history; 0 leaves them out."""
    personal_prompt: bool = advanced(True)
    """The user's attribute values as further prompts."""
    adapter_width: int = advanced(8, ge=0)
    """Width of the adapters; 0 leaves them out."""
    transport_units: int = advanced(16, ge=0)
    """Units of the transport behind the last layer; 0 leaves it out."""

    @model_validator(mode="after")
    def _has_a_part(self) -> "EliminatorConfig":
        if not (self.num_prompts or self.personal_prompt or self.adapter_width):
            raise ValueError("an eliminator needs prompts, a personal prompt or adapters; all three are left out")
        return self
