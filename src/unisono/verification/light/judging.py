"""Judging what a node opened, for whoever has secrets of the model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unisono.errors import ConfigurationError, PeerCheating, ReceiptError
from unisono.types import GenerationRequest, LayerRange
from unisono.verification.light.checks import Checks, Difference
from unisono.verification.light.messages import CellName, Challenge, Opening, decode
from unisono.verification.light.opened import Opened
from unisono.verification.light.secrets import Secrets
from unisono.verification.verdict import Fault, FaultKind, Verdict, fault_of
from unisono.wire.claims import HopClaim
from unisono.wire.identity import verify_signature

_KINDS: dict[str, FaultKind] = {"row_in": "rows_in", "sampling": "sampling"}
"""Faults that have a name of their own; every other operator's is `operator`."""


class LightVerdict(Verdict, frozen=True):
    """A verdict that names the operator, too."""

    layer: int | None = None
    operator: str = ""


class OpeningJudge:
    """Checks of one claim's openings."""

    def __init__(
        self,
        secrets: Secrets,
        claim: HopClaim,
        request: GenerationRequest,
        answer: tuple[int, ...],
    ) -> None:
        """That claim, request and answer belong together must have been checked
        (`verification.form.check_form`, or `Opened.problem`).

        Raises:
            ConfigurationError: the secrets are of another model than the claim.
            ReceiptError: the claim's layers, the tokens or the settings do not fit the model.
        """
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
        self.claim, self.request = claim, request
        self.tokens = (*request.prompt, *answer)
        if len(self.tokens) - 1 != claim.positions or not all(
            0 <= t < config.vocabulary_size for t in self.tokens
        ):
            raise ReceiptError("the receipt's tokens do not fit its claims or its model")
        problem = request.sampling.problem(config.vocabulary_size)
        if problem is not None:
            raise ReceiptError(f"the receipt does not fit its model: {problem}")
        self._secrets = secrets

    def judge(self, challenge: Challenge, data: bytes) -> LightVerdict:
        """Check the answer to a challenge of the claim and its committed trace.

        Raises:
            ReceiptError: the challenge asks for what the claim does not cover.
        """
        if not self._covers(challenge):
            raise ReceiptError("the challenge asks for what the claim does not cover")
        torch.set_grad_enabled(False)
        checks = Checks(self._secrets, self.claim, bytes.fromhex(challenge.trace), self.tokens)
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
                lambda p=position, h=head: checks.head(p, h, self.request),
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
            kind = _KINDS.get(error.operator, "operator")
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

    def _covers(self, challenge: Challenge) -> bool:
        claim, layers = self.claim, self.claim.layers
        ends = layers.stop == self._secrets.config.layer_count
        return (
            all(
                layers.start <= c.layer < layers.stop and c.position < claim.positions
                for c in (*challenge.cells, *challenge.samples)
            )
            and (ends or not challenge.heads)
            and all(len(self.request.prompt) - 1 <= p < claim.positions for p in challenge.heads)
        )


def judge_opened(opened: Opened, secrets: Secrets) -> LightVerdict:
    """What a file of evidence shows to someone with secrets of the model.

    Raises:
        ConfigurationError: the secrets are of another model.
        ReceiptError: it is no audit of the claim that it names.
    """
    problem = opened.problem()
    if problem is not None:
        return LightVerdict("INCONCLUSIVE", message=f"it proves nothing: {problem}")
    judge = OpeningJudge(secrets, opened.claim, opened.request, opened.tokens)
    verdict = judge.judge(opened.challenge, opened.opening)
    if verdict.verdict == "INVALID" and verdict.fault and verdict.fault.kind == "malformed":
        # whoever made the file could have put anything in the place of the node's answer
        return LightVerdict("INCONCLUSIVE", message=f"it proves nothing: {verdict.message}")
    return verdict
