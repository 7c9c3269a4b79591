"""What requests and answers look like; FastAPI derives the OpenAPI document from it.

Bounds that depend on the loaded bundle (territories, attributes, titles) are checked by `serving.queries`. Where a
body could hold any number of faults, only the first is looked for: to name a million of them took seven seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

MAX_K = 1000
MAX_HISTORY = 1000
MAX_BATCH = 1000
MAX_BATCH_TITLES = 50_000
MAX_EVENTS = 100
MAX_TITLE_IDS = 1000

Id = Annotated[str, Field(min_length=1, max_length=256)]


class Request(BaseModel):
    """Unknown fields are refused, so that a misspelt `ignore` never passes for an empty one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown_field(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys() <= cls.model_fields.keys():
            name = next(name for name in given if name not in cls.model_fields)
            fault = InitErrorDetails(type="extra_forbidden", loc=(name,), input=given[name])
            raise ValidationError.from_exception_data(cls.__name__, [fault])
        return given


class RecommendRequest(Request):
    """Titles for one user or one history."""

    user_id: Id | None = None
    """A user of the online store; or give `history`."""
    history: Annotated[list[Id], Field(min_length=1, max_length=MAX_HISTORY)] | None = None
    """Title ids, oldest first; or give `user_id`."""
    attributes: dict[str, str] = Field(default={}, fail_fast=True)
    """Attribute values of the history's owner, as `{"gender": "F"}`: what is known is hidden best."""
    territory: Id
    """Where the titles are to be offered."""
    ignore: list[str] = Field(default=[], fail_fast=True)
    """Attributes that this request wants ignored."""
    k: int = Field(default=10, ge=1, le=MAX_K)
    """Titles wanted."""
    exclude_seen: bool = True
    """Leave out the titles of the history."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "RecommendRequest":
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give user_id or history, one of the two")
        if self.attributes and self.history is None:
            raise ValueError("attributes belong to a history; a stored user has their own: leave attributes out")
        return self


class RecommendBatch(Request):
    """Many requests in one call; a fault in one refuses the whole call, and the answer says in which."""

    requests: list[RecommendRequest] = Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)
    """At most 50,000 titles by the sum of their `k`."""

    @field_validator("requests")
    @classmethod
    def _not_too_much(cls, requests: list[RecommendRequest]) -> list[RecommendRequest]:
        wanted = sum(request.k for request in requests)
        if wanted > MAX_BATCH_TITLES:
            raise ValueError(f"the sum of k is {wanted:,}, at most {MAX_BATCH_TITLES:,}: send fewer requests at a time")
        return requests


class ScoredTitle(BaseModel):
    title_id: str
    name: str
    score: float


class Recommendation(BaseModel):
    """Titles, best first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    titles: list[ScoredTitle]
    combination: str
    """Attributes ignored, joined by plus in the bundle's order; `none` where nothing is."""
    source: Literal["model", "popularity"]
    """`popularity`: the territory's most watched titles, the same for everybody, see `reason`."""
    reason: Literal["unknown user", "no known title in the history", "store unavailable"] | None = None
    """Why the model was not used."""
    unknown_titles: int = 0
    """Titles of the history that the catalogue lacks; they were left out."""
    unknown_values: list[str] = []
    """Ignored attributes whose value is not known for this user, so they may be hidden less well."""
    bundle_version: str


class RecommendationBatch(BaseModel):
    responses: list[Recommendation]


class PropensityRequest(Request):
    """First-discovery propensities of one user."""

    user_id: Id | None = None
    """A user of the online store; or give `embedding`."""
    embedding: Annotated[list[float], Field(fail_fast=True)] | None = None
    """A user's embedding, of the lake's width; or give `user_id`."""
    territory: Id
    """Decides the group block, and which titles are offered."""
    title_ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_TITLE_IDS)] | None = None
    """Titles wanted; without them the `k` most likely ones of the territory."""
    k: int = Field(default=10, ge=1, le=MAX_K)

    @model_validator(mode="after")
    def _one_of_two(self) -> "PropensityRequest":
        if (self.user_id is None) == (self.embedding is None):
            raise ValueError("give user_id or embedding, one of the two")
        return self


class TitlePropensity(BaseModel):
    title_id: str
    name: str
    propensity: float


class Propensities(BaseModel):
    """Titles, most likely first, or in the order asked for."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    titles: list[TitlePropensity]
    group: int
    """Territory group whose block was used."""
    bundle_version: str


class Event(Request):
    title_id: Id


class EventsRequest(Request):
    """What a user watched, oldest first."""

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsStored(BaseModel):
    stored: int
    unknown_titles: int
    history_length: int


class CombinationInfo(BaseModel):
    """One combination of attributes that can be ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    ignore: list[str]
    metrics: dict[str, float] = {}
    """Accuracy with intervals, as the audit measured it: `ndcg@10`, `ndcg@10_low`, `ndcg@10_high`, ..."""
    audit: dict[str, dict[str, bool | float | int | str | None]] = {}
    """Attribute -> how well the best attacker tells it: `balanced_accuracy`, `auc`, `null_low`, `null_high`, ..."""


class Combinations(BaseModel):
    """What requests can ask for."""

    bundle_version: str
    attributes: dict[str, list[str]]
    territories: list[str]
    combinations: list[CombinationInfo]


class Problem(BaseModel):
    """Every 4xx and 5xx answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str | None
    """Where in the request, such as `requests[3].ignore`."""
    message: str
    """What is wrong and how to fix it."""
