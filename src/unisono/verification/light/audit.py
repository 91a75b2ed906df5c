"""A light audit: draw cells after the commitment, judge what comes back.

commit     the hop's claim, and then, when summoned, the root of its trace
challenge  cells, samples and logits drawn at random once the root is here
respond    `responder.Responder`
judge      VALID, or INVALID with the layer, the operator and the position
"""

from __future__ import annotations

import random

from unisono.errors import PeerCheating
from unisono.verification.light.draw import Budget, draw
from unisono.verification.light.judging import LightVerdict as LightVerdict
from unisono.verification.light.judging import OpeningJudge
from unisono.verification.light.messages import Challenge, Summons, TraceCommitment, claim_hash
from unisono.verification.light.opened import Opened
from unisono.verification.light.secrets import Secrets
from unisono.verification.receipt import Receipt
from unisono.wire.identity import verify_signature


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
        self._judge = OpeningJudge(secrets, claim, receipt.request, receipt.tokens)
        self.claim, self._answer = claim, receipt.tokens
        self._config, self._budget = secrets.config, budget
        self._source = source or random.SystemRandom()
        self._trace: TraceCommitment | None = None
        self._asked: set[str] = set()

    def summons(self) -> Summons:
        """The first message: commit to your trace."""
        begins = self.claim.layers.start == 0
        return Summons(self.claim, self._judge.tokens[: self.claim.positions] if begins else ())

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
        self._trace = commitment
        drawn = draw(
            self._config,
            self.claim,
            commitment.root,
            range(len(self._judge.request.prompt) - 1, self.claim.positions),
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
        return self._judge.judge(challenge, data)

    def evidence(self, challenge: Challenge, data: bytes) -> Opened:
        """What shows others the answer to a challenge of this audit."""
        assert self._trace is not None
        request = self._judge.request
        return Opened(self.claim, request, self._answer, self._trace, challenge, data)
