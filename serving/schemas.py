"""Bodies of requests and answers; FastAPI derives the OpenAPI document from them.

Limits that depend on the loaded bundle (territories, attributes, titles) are checked by `serving.service`. Only the
first error of a body is reported: listing a million of them took seven seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from mtrec_ray.bundle.manifest import Leakage, ListAudit, Metric

MAX_ITEMS = 1000  # limit of `k`, of a history, of `title_ids` and of the requests in a batch
MAX_BATCH_TITLES = 50_000
MAX_EVENTS = 100

Id = Annotated[str, Field(min_length=1, max_length=256)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS)]


class AnswerBody(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class RequestBody(BaseModel):
    """Unknown fields are refused, so that a misspelt `ignore` is never read as an empty one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown_field(cls, body: Any) -> Any:
        if isinstance(body, dict) and not body.keys() <= cls.model_fields.keys():
            name = next(name for name in body if name not in cls.model_fields)
            error = InitErrorDetails(type="extra_forbidden", loc=(name,), input=body[name])
            raise ValidationError.from_exception_data(cls.__name__, [error])
        return body


class RecommendRequest(RequestBody):
    """Titles for one user or one history."""

    user_id: Id | None = None
    """A user of the online store; or give `history`."""
    history: Ids | None = None
    """Title ids, oldest first; or give `user_id`."""
    attributes: dict[str, str] = Field(default={}, fail_fast=True)
    """Attribute values of the history's user, such as `{"gender": "F"}`; known values are hidden best."""
    territory: Id
    """Only titles offered here are recommended."""
    ignore: list[str] = Field(default=[], fail_fast=True)
    """Attributes to ignore: the profile that ranks titles is to tell no more of them than chance. Lists still tell of
    what the user watched, by what they leave out (`exclude_seen`); `warnings` say what the audit found."""
    k: int = Field(default=10, ge=1, le=MAX_ITEMS)
    """Maximum titles."""
    exclude_seen: bool | None = None
    """Leave out the titles of the history; null: as the model was trained (`exclude_seen` of GET /v1/combinations).
    Which titles are missing tells of those that were watched, and so of the user: false shows all alike."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "RecommendRequest":
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        if self.attributes and self.history is None:
            raise ValueError("attributes belong to a history; a stored user has its own: leave attributes out")
        return self


class RecommendBatch(RequestBody):
    """Many requests in one call; an error in one refuses the whole call and names its index."""

    requests: list[RecommendRequest] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    """The sum of `k` is at most 50,000."""

    @field_validator("requests")
    @classmethod
    def _limited_sum_of_k(cls, requests: list[RecommendRequest]) -> list[RecommendRequest]:
        total = sum(request.k for request in requests)
        if total > MAX_BATCH_TITLES:
            raise ValueError(f"the sum of k is {total:,}, at most {MAX_BATCH_TITLES:,}: send fewer requests at a time")
        return requests


class ScoredTitle(BaseModel):
    title_id: str
    name: str
    score: float


class Recommendation(AnswerBody):
    """Titles, best first."""

    titles: list[ScoredTitle]
    combination: str
    """Ignored attributes, joined by plus in the bundle's order; `none` if nothing is ignored."""
    source: Literal["model", "popularity"]
    """`popularity`: the territory's most popular titles, the same for all users, see `reason`."""
    reason: Literal["unknown user", "no known title in the history", "store unavailable"] | None = None
    """Why the model was not used."""
    unknown_titles: int = 0
    """Skipped titles of the history, which are not in the catalogue."""
    unknown_values: list[str] = []
    """Ignored attributes whose value is unknown for this user, so they may be hidden less well."""
    warnings: list[str] = []
    """Ignored attributes that leak all the same by the bundle's audit, or were not audited; also what leaving out
    watched titles tells."""
    bundle_version: str


class RecommendationBatch(BaseModel):
    responses: list[Recommendation]


class PropensityRequest(RequestBody):
    """First-discovery propensities of one user."""

    user_id: Id | None = None
    """A user of the online store; or give `embedding`."""
    embedding: Annotated[list[float], Field(fail_fast=True)] | None = None
    """A user embedding of the lake's width; or give `user_id`."""
    territory: Id
    """Decides the group block and which titles are offered."""
    title_ids: Ids | None = None
    """Titles to score; without them the `k` most likely titles of the territory."""
    k: int = Field(default=10, ge=1, le=MAX_ITEMS)

    @model_validator(mode="after")
    def _one_of_two(self) -> "PropensityRequest":
        if (self.user_id is None) == (self.embedding is None):
            raise ValueError("give either user_id or embedding")
        return self


class TitlePropensity(BaseModel):
    title_id: str
    name: str
    propensity: float
    """Of a user of average activity: a request does not say when the user watched."""


class Propensities(AnswerBody):
    """Titles, most likely first, or in the requested order."""

    titles: list[TitlePropensity]
    group: int
    """Index of the territory group."""
    bundle_version: str


class Event(RequestBody):
    title_id: Id


class EventsRequest(RequestBody):
    """What a user watched, oldest first."""

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)


class EventsStored(BaseModel):
    stored: int
    unknown_titles: int
    history_length: int


class CombinationInfo(AnswerBody):
    """One combination of attributes that can be ignored."""

    name: str
    ignore: list[str]
    metrics: dict[str, Metric] = {}
    """Accuracy from the audit: `ndcg@10`, ..."""
    audit: dict[str, Leakage] = {}
    """Attribute -> success of the best attacker on user vectors."""
    list_audit: ListAudit = ListAudit()
    """The same on top-10 lists, with watched titles kept in and left out."""
    warnings: list[str] = []
    """What answers warn of by default: ignored attributes that leak, or were not audited."""


class Combinations(BaseModel):
    """What requests can ask for."""

    bundle_version: str
    attributes: dict[str, list[str]]
    territories: list[str]
    exclude_seen: bool = True
    """Whether recommendations leave out the titles of the history, unless the request says otherwise."""
    combinations: list[CombinationInfo]


class Problem(AnswerBody):
    """Body of every 4xx and 5xx answer."""

    field: str | None
    """Where in the request, such as `requests[3].ignore`."""
    message: str
    """What is wrong and how to fix it."""
