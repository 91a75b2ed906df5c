"""What can be said of an ensemble's receipt: its parts, and whether the tokens follow from them.

The receipt's own claims are those of the model that its request names; `Receipt.ensemble` holds
the other models'. Each part has the form of a receipt and is checked as one, but for the choice
of tokens: there the last hop answers for what it said of every token, and the gateway for having
chosen from the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from unisono.numerics.ensemble import choose_jointly
from unisono.types import Distribution
from unisono.verification.verdict import Fault, fault_of
from unisono.wire.ensemble import (
    MAX_MODELS,
    MIN_MODELS,
    distribution_hash,
    distributions_root,
)

if TYPE_CHECKING:
    from unisono.verification.receipt import Receipt


def parts(receipt: Receipt) -> tuple[Receipt, ...]:
    """The receipt as one of each model: the request's own first. Where one model answered alone
    it is the only part."""
    if receipt.ensemble is UNSET:
        return (receipt,)
    own = msgspec.structs.replace(receipt, ensemble=UNSET)
    others = (
        msgspec.structs.replace(
            own,
            request=msgspec.structs.replace(receipt.request, model=member.model),
            hops=member.hops,
        )
        for member in receipt.ensemble.members
    )
    return (own, *others)


def check_ensemble(receipt: Receipt) -> Fault | None:
    """Whether the models are those that were asked for, and nobody else speaks of
    distributions."""
    asked = receipt.request.ensemble
    problem = ""
    if (asked is UNSET) != (receipt.ensemble is UNSET):
        problem = "it was asked of an ensemble and has no other model's claims, or has them unasked"
    elif asked is not UNSET and receipt.ensemble is not UNSET:
        answered = [member.model for member in receipt.ensemble.members]
        if not MIN_MODELS <= len(asked) <= MAX_MODELS or len({*asked}) < len(asked):
            problem = f"an ensemble has {MIN_MODELS} to {MAX_MODELS} different models"
        elif receipt.request.model not in asked:
            problem = "the request's own model is not one of the ensemble"
        elif answered != [model for model in asked if model != receipt.request.model]:
            problem = "the models that answered are not those that were asked"
        elif receipt.quorum is not UNSET:
            problem = "an ensemble's answer has no quorum"
    if problem:
        return Fault("ensemble", f"ensemble: {problem}")
    for part in parts(receipt):
        for claim in part.hops:
            due = asked is not UNSET and claim is part.hops[-1]
            if (claim.distributions is not UNSET) != due:
                what = "does not sign what" if due else "signs more than"
                message = f"hop {claim.hop} (node {claim.node[:16]}…) {what} was asked of its model"
                return fault_of(claim, "claims_inconsistent", message)
    return None


def check_distributions(part: Receipt, said: Sequence[Distribution]) -> Fault | None:
    """Whether a last hop told what its own rows give; `said` is what they give."""
    claim = part.hops[-1]
    if claim.distributions == distributions_root([distribution_hash(each) for each in said]):
        return None
    return fault_of(
        claim,
        "distributions",
        f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) of model "
        f"{claim.model[:12]}… told other distributions than its own rows give",
    )


def check_choices(receipt: Receipt, said: Sequence[Sequence[Distribution]]) -> Fault | None:
    """Whether every token is the one that the models chose together; `said`: by model, then by
    token."""
    first = len(receipt.request.prompt)
    for index, (token, each) in enumerate(
        zip(receipt.tokens, zip(*said, strict=True), strict=True), first
    ):
        due = choose_jointly(each, receipt.request.sampling, index)
        if due != token:
            return Fault(
                "joint_choice",
                f"the gateway {receipt.gateway} gave token {token} at position {index}, where the "
                f"mean of what the models said gives {due}",
                node=receipt.gateway,
                position=index,
            )
    return None
