"""A light audit: draw cells after the commitment, judge what comes back.

commit     the hop's claim, and then, when summoned, the root of its trace
challenge  cells, samples and logits drawn at random once the root is here
respond    `trace.Responder`
judge      VALID, or INVALID with the layer, the operator and the position
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from unisono.errors import ConfigurationError, PeerCheating, ReceiptError
from unisono.types import GenerationRequest, LayerRange
from unisono.verification.light.checks import Checks, Difference
from unisono.verification.light.draw import Budget, draw
from unisono.verification.light.messages import (
    CellName,
    Challenge,
    Opening,
    Summons,
    TraceCommitment,
    claim_hash,
    decode,
)
from unisono.verification.light.secrets import Secrets
from unisono.verification.receipt import Receipt
from unisono.verification.verdict import Fault, FaultKind, Verdict, fault_of
from unisono.wire.identity import verify_signature

_KINDS: dict[str, FaultKind] = {"row_in": "rows_in", "sampling": "sampling"}
"""Faults of which the ladder has a name; every other operator's is `rows_out`."""


class LightVerdict(Verdict, frozen=True):
    """A verdict that names the operator, too."""

    layer: int | None = None
    operator: str = ""


class LightAudit:
    """One client's audit of one claim. It speaks no network: messages in, messages out."""

    def __init__(
        self,
        secrets: Secrets,
        receipt: Receipt,
        hop: int,
        budget: Budget = Budget(),
        source: random.Random | None = None,
    ) -> None:
        """The receipt's form must have been checked (`verification.form.check_form`).

        `source` draws the cells: the operating system's randomness unless a test gives another.

        Raises:
            ConfigurationError: the secrets are of another model than the claim.
            ReceiptError: the claim's layers or the receipt's tokens or settings do not fit it.
        """
        claim = receipt.hops[hop]
        layers, config = claim.layers, secrets.config
        if claim.model != secrets.model:
            raise ConfigurationError(
                f"the secrets are of model {secrets.model[:12]}…, the claim is of "
                f"{claim.model[:12]}…: make secrets from that model's weights"
            )
        if not 0 <= layers.start < layers.stop <= config.layer_count:
            raise ReceiptError(
                f"the claim is of layers {layers}; the model has {config.layer_count}"
            )
        self.claim = claim
        self._request: GenerationRequest = receipt.request
        self._tokens = (*receipt.request.prompt, *receipt.tokens)
        if len(self._tokens) - 1 != claim.positions or not all(
            0 <= t < config.vocabulary_size for t in self._tokens
        ):
            raise ReceiptError("the receipt's tokens do not fit its claims or its model")
        problem = receipt.request.sampling.problem(config.vocabulary_size)
        if problem is not None:
            raise ReceiptError(f"the receipt does not fit its model: {problem}")
        self._secrets, self._budget = secrets, budget
        self._source = source or random.SystemRandom()
        self._trace: str | None = None
        self._asked: set[str] = set()

    def summons(self) -> Summons:
        """The first message: commit to your trace."""
        begins = self.claim.layers.start == 0
        return Summons(self.claim, self._tokens[: self.claim.positions] if begins else ())

    def challenges(self, commitment: TraceCommitment) -> list[Challenge]:
        """Draw what is to be opened, now that the trace is fixed.

        Several challenges, so that the answer to each fits in a frame.

        Raises:
            PeerCheating: the commitment is of another claim, is not signed by the claim's node,
                or is the second one, of another trace.
        """
        if commitment.claim != claim_hash(self.claim):
            raise PeerCheating("a trace of another claim")
        if not verify_signature(self.claim.node, commitment.signed_bytes(), commitment.signature):
            raise PeerCheating("a trace that the claim's node did not sign")
        if self._trace is not None:
            raise PeerCheating("a second trace after cells were drawn")
        self._trace = commitment.root
        drawn = draw(
            self._secrets.config,
            self.claim,
            self._trace,
            range(len(self._request.prompt) - 1, self.claim.positions),
            self._budget,
            self._source,
        )
        self._asked = {challenge.hash() for challenge in drawn}
        return drawn

    def judge(self, challenge: Challenge, data: bytes) -> LightVerdict:
        """Check the answer to a challenge of this audit.

        Raises:
            ValueError: this audit did not make the challenge.
        """
        if challenge.hash() not in self._asked or self._trace is None:
            raise ValueError("the challenge is not one that this audit made")
        torch.set_grad_enabled(False)
        checks = Checks(self._secrets, self.claim, bytes.fromhex(self._trace), self._tokens)
        try:
            opening = decode(data, Opening)
            self._check_answer(challenge, opening)
        except PeerCheating as error:
            return self._invalid("malformed", f"a malformed answer: {error}")
        for name, cell in zip(challenge.cells, opening.cells, strict=True):
            found = self._found(name, lambda n=name, c=cell: checks.cell(n, c))
            if found is not None:
                return found
        for name, sample in zip(challenge.samples, opening.samples, strict=True):
            found = self._found(name, lambda n=name, s=sample: checks.sample(n, s))
            if found is not None:
                return found
        last = self.claim.layers.stop - 1
        for position, head in zip(challenge.heads, opening.heads, strict=True):
            found = self._found(
                CellName(last, position),
                lambda p=position, h=head: checks.head(p, h, self._request),
            )
            if found is not None:
                return found
        return LightVerdict(
            "VALID",
            None,
            f"{len(challenge.cells)} cells, {len(challenge.samples)} samples and "
            f"{len(challenge.heads)} tokens are what the model computes",
            len({c.position for c in challenge.cells}),
        )

    def _check_answer(self, challenge: Challenge, opening: Opening) -> None:
        if (opening.claim, opening.challenge) != (challenge.claim, challenge.hash()):
            raise PeerCheating("it answers another challenge")
        counts = len(opening.cells), len(opening.samples), len(opening.heads)
        if counts != (len(challenge.cells), len(challenge.samples), len(challenge.heads)):
            raise PeerCheating("it opens another number of cells than were asked for")
        if not verify_signature(self.claim.node, opening.signed_bytes(), opening.signature):
            raise PeerCheating("the claim's node did not sign it")

    def _found(self, name: CellName, check: Callable[[], None]) -> LightVerdict | None:
        where = f"layer {name.layer} at position {name.position}"
        try:
            check()
        except Difference as error:
            kind = _KINDS.get(error.operator, "rows_out")
            return self._invalid(kind, f"{error.operator}: {error}", name, error.operator)
        except PeerCheating as error:
            return self._invalid("malformed", f"{where}: {error}", name)
        return None

    def _invalid(
        self, kind: FaultKind, message: str, name: CellName | None = None, operator: str = ""
    ) -> LightVerdict:
        claim = self.claim
        who = f"hop {claim.hop} (layers {claim.layers}, node {claim.node})"
        if name is None:
            fault = fault_of(claim, kind, f"{who} gave {message}")
            return LightVerdict("INVALID", fault, fault.message)
        text = f"{who}, layer {name.layer}, position {name.position}: {message}"
        layers = LayerRange(name.layer, name.layer + 1)
        fault = Fault(kind, text, claim.hop, claim.node, layers, name.position)
        return LightVerdict("INVALID", fault, text, layer=name.layer, operator=operator)
