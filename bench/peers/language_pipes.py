"""Language Pipes on this machine: one stream over two nodes that hold half the layers each.

`UNISONO_LANGUAGE_PIPES` names the folder with the program `language-pipes` (2.5.0 is the
version this was written against), as `pip install` puts it into the `bin` of a virtual
environment of its own. Its nodes compute in bfloat16 with transformers, so the model is a
folder of safetensors with a config and a tokenizer, not a GGUF file.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from bench.peers.process import (
    PeerFailedError,
    PeerMissingError,
    existing,
    free_port,
    listening,
    program,
    running,
)

VARIABLE = "UNISONO_LANGUAGE_PIPES"
MODEL = "bench/model"
PROMPT = "The most beautiful thing about the sea is"
ANSWER_SECONDS = 60.0
START_SECONDS = 180.0
PROBE_SECONDS = 5.0

MEMORY_GB = 64
"""The budget of the second node, above what any model of this bench needs."""

# Only chat requests are served, and a base model has no template: the text goes in as it is.
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def decode(folder: Path, threads: int = 1, tokens: int = 128) -> float:
    """Tokens per second of one greedy stream of at most `tokens` tokens, after the first one.

    Two processes on loopback with this many torch threads each: the first computes the
    embedding, the first half of the layers and the head, the second the other half (it loads
    all layers, since only a memory budget can be set, and skips those already computed). End
    tokens cannot be ignored there. Raises PeerMissingError without the program or a complete
    folder, and PeerFailedError if a node does not start or does not answer.
    """
    layers = _layers(existing(folder, "a folder of safetensors"))
    with tempfile.TemporaryDirectory() as home, ExitStack() as nodes:
        pair = _pair(Path(home), folder.absolute(), layers, threads)
        base_url = nodes.enter_context(pair)
        _rate(base_url, 8)  # a process is slower in its first answer
        return _rate(base_url, tokens)


def _layers(folder: Path) -> int:
    needed = ("config.json", "tokenizer.json", "tokenizer_config.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise PeerMissingError(
            f"{folder} lacks {', '.join(missing)}; expected what `save_pretrained` of transformers "
            "writes for a model and its tokenizer. Write it with transformers"
        )
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


@contextmanager
def _pair(home: Path, folder: Path, layers: int, threads: int) -> Iterator[str]:
    """Two nodes and the base URL of the API of the first, from when it can answer."""
    first, second, api = free_port(), free_port(), free_port()
    front = f"""job_port = {api}
[[end_models]]
model_id = "{MODEL}"
num_local_layers = {layers // 2}
device = "cpu"
"""
    back = f"""[[bootstrap_nodes]]
address = "127.0.0.1"
port = {first}
[[layer_models]]
model_id = "{MODEL}"
device = "cpu"
memory = {MEMORY_GB}
data_type = 16
"""
    base_url = f"http://127.0.0.1:{api}/v1"

    def reachable() -> bool:
        return listening(first) and listening(api)

    with (
        _node(home / "front", folder, first, front, threads, reachable),
        _node(home / "back", folder, second, back, threads, lambda: _answers(base_url)),
    ):
        yield base_url


@contextmanager
def _node(
    home: Path, folder: Path, port: int, settings: str, threads: int, ready: Callable[[], bool]
) -> Iterator[None]:
    """One node with its own home folder, so that two never write the same cache files."""
    _install(folder, home / "models" / MODEL / "data")
    config = home / "node.toml"
    config.write_text(
        f'node_id = "{home.name}"\npeer_port = {port}\nnetwork_ip = "127.0.0.1"\n{settings}'
    )
    environment = {
        "HOME": str(home),
        "LP_APP_DIR": str(home / "app"),
        "LP_MODEL_DIR": str(home / "models"),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    command = [program(VARIABLE, "language-pipes"), "-c", config, "run"]
    with running(command, ready, seconds=START_SECONDS, environment=environment):
        yield


def _install(folder: Path, data: Path) -> None:
    """Lay the model out as a downloaded one: links, but for the template in the tokenizer."""
    data.mkdir(parents=True)
    for file in folder.iterdir():
        (data / file.name).symlink_to(file)
    own = data / "tokenizer_config.json"
    settings = json.loads(own.read_text())
    own.unlink()
    own.write_text(json.dumps({**settings, "chat_template": TEMPLATE}))


def _answers(base_url: str) -> bool:
    """Whether the pair gives an answer of one token.

    A request that comes while the first node still loads its half is never answered, so each
    attempt is short.
    """
    try:
        reply = httpx.post(
            f"{base_url}/chat/completions", json=_body(1, stream=False), timeout=PROBE_SECONDS
        )
        return "choices" in reply.json()
    except (httpx.HTTPError, ValueError):
        return False


def _body(tokens: int, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": PROMPT}]
    return {
        "model": MODEL,
        "messages": messages,
        "max_completion_tokens": tokens,
        "temperature": 0,
        "stream": stream,
    }


def _rate(base_url: str, tokens: int) -> float:
    """Tokens per second between the first and the last token that one stream shows."""
    times: list[float] = []
    url = f"{base_url}/chat/completions"
    try:
        with httpx.stream(
            "POST", url, json=_body(tokens, stream=True), timeout=ANSWER_SECONDS
        ) as response:
            for line in response.iter_lines():
                if _is_token(line):
                    times.append(time.perf_counter())
    except httpx.HTTPError as error:
        raise PeerFailedError(
            f"language-pipes broke off its answer ({error!r}); expected {tokens} tokens. "
            "Try again on an idle machine"
        ) from error
    if len(times) < 2:
        raise PeerFailedError(
            f"language-pipes answered with {len(times)} tokens, expected at least 2 to measure; "
            "ask for more tokens, or use a model that goes on after the prompt"
        )
    return (len(times) - 1) / (times[-1] - times[0])


def _is_token(line: str) -> bool:
    """Whether this line of the stream carries a token: each has its own event.

    The event that opens the answer has a role, the one that ends it has no content; the last
    token of an answer comes in no event.
    """
    if not line.startswith("data: {"):
        return False
    event = json.loads(line[6:])
    if "error" in event:
        raise PeerFailedError(f"language-pipes ended its answer with an error: {event['error']}")
    delta = event["choices"][0]["delta"]
    return "content" in delta and "role" not in delta
