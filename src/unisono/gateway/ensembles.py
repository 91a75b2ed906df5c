"""Which models a request wants to answer together."""

from __future__ import annotations

from unisono.errors import RequestError
from unisono.gateway.schemas import AskedSampling
from unisono.gateway.served import ServedModel, ServedModels
from unisono.wire.ensemble import MAX_MODELS, MIN_MODELS


def members_of(
    asked: AskedSampling, model: ServedModel, models: ServedModels
) -> tuple[ServedModel, ...]:
    """The models of an ensemble in the order of the request; empty if none was asked for.

    Raises:
        RequestError: a model is not served, not one vocabulary is theirs, or they cannot be one.
    """
    names = asked.ensemble
    if names is None:
        return ()
    if asked.quorum is not None:
        raise _wrong("it cannot go with 'quorum': ask for one of them")
    if not MIN_MODELS <= len(names) <= MAX_MODELS:
        raise _wrong(f"it names {len(names)} models: expected {MIN_MODELS} to {MAX_MODELS}")
    try:
        members = tuple(models.find(name) for name in names)
    except RequestError as error:
        raise RequestError(str(error), param="ensemble", code="model_not_found") from error
    if len({each.id for each in members}) < len(members):
        raise _wrong("it names a model twice")
    if model not in members:
        raise _wrong(f"it must name '{model.name}', the request's own model, too")
    for each in members:
        if each.tokenizer.vocabulary_hash != model.tokenizer.vocabulary_hash:
            raise _wrong(
                f"'{each.name}' and '{model.name}' have different vocabularies: an id must mean "
                "the same token to all models of an ensemble"
            )
    return members


def _wrong(problem: str) -> RequestError:
    return RequestError(f"'ensemble': {problem}", param="ensemble")
