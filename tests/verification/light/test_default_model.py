"""The default model, audited by a process that has its secrets and nothing else of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.verification.light.answered import KEY, Answered, caught
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.decoder import Draw, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.store import ModelStore
from unisono.types import GenerationRequest, LayerRange, canonical
from unisono.verification.light.audit import LightAudit
from unisono.verification.light.draw import Budget
from unisono.verification.light.making import build
from unisono.verification.light.responder import Responder
from unisono.verification.light.trace import Trace
from unisono.verification.receipt import to_json

CLIENT = """
import random, sys
from pathlib import Path
from unisono.observe.machine import resident_bytes
from unisono.verification.light.audit import LightAudit
from unisono.verification.light.draw import Budget
from unisono.verification.light.messages import TraceCommitment, decode
from unisono.verification.light.secrets import Secrets
from unisono.verification.receipt import from_json

before, folder = resident_bytes(), Path(sys.argv[1])
receipt = from_json((folder / "receipt").read_bytes())
secrets = Secrets.load(folder / "secrets", receipt.request.model)
audit = LightAudit(secrets, receipt, 0, Budget(1, 0, 4, 1), random.Random(5))
commitment = decode((folder / "commitment").read_bytes(), TraceCommitment)
(challenge,) = audit.challenges(commitment)
verdict = audit.judge(challenge, (folder / "answer").read_bytes())
assert resident_bytes() - before < 64 << 20, "a client holds little"
print(verdict.verdict, verdict.message)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_client_without_weights_audits_the_default_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the default model is converted once per user
    monkeypatch.delenv("UNISONO_CACHE", raising=False)
    model = ModelStore().ensure(DEFAULT_MODEL)
    config, whole = model.manifest.config, LayerRange(0, model.layer_count)
    secrets, weights = build(model), load_block(model, whole)
    tokens = [2, *random.Random(0).sample(range(1000, 200_000), 30)]
    request = GenerationRequest(model.id, tuple(tokens), 1)
    decoder = make_decoder(config, weights)
    rows = decoder.forward(decoder.embed(tokens), [Segment(decoder.new_cache(31), 0, 31)])
    draw = Draw(request.sampling, rows[:0, 0].astype("int32"), 0)
    token = decoder.choose(rows, [(30, 31, draw)])[0].token
    decoder.close()
    trace = Trace(config, weights, tokens)
    assert (trace.out == rows).all()
    answer = Answered(config, secrets, weights, request, (token,), 0)
    receipt = answer.receipt(trace, model=model.id)

    secrets.save(tmp_path / "secrets")
    assert (tmp_path / "secrets").stat().st_size < 2 << 20
    (tmp_path / "receipt").write_bytes(to_json(receipt))
    responder = Responder(receipt.hops[0], trace, KEY)
    (tmp_path / "commitment").write_bytes(canonical(responder.commit()))
    audit = LightAudit(secrets, receipt, 0, Budget(1, 0, 4, 1), random.Random(5))
    (challenge,) = audit.challenges(responder.commit())
    (tmp_path / "answer").write_bytes(responder.respond(challenge))
    empty = {**os.environ, "UNISONO_CACHE": str(tmp_path / "no models here")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path)],
        capture_output=True,
        text=True,
        env=empty,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VALID 18 cells")

    gate = weights.layer[11].gate
    values = gate.values.copy()
    values[100, 200] += 1 if values[100, 200] < 100 else -1
    layer = replace(weights.layer[11], gate=replace(gate, values=values))
    other = replace(weights, layer={**weights.layer, 11: layer})
    lying = Trace(config, other, tokens)
    receipt = answer.receipt(lying, model=model.id)
    verdict = answer.audit(lying, Budget(3, 0, 0, 0), receipt)
    caught(verdict, "gate", 11)
