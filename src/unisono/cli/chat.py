"""`unisono chat`: a conversation in the terminal."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.cli.client import GatewayClient


def chat(
    base_url: o.BaseUrl = None,
    model: o.Model | None = None,
    api_key: o.ApiKey = None,
    nodes: o.NodesIfAny = None,
    quorum: o.Quorum = None,
    transport: o.Transport = o.TransportName.tcp,
    max_tokens: o.MaxTokens = 512,
    temperature: o.Temperature = 0.7,
    seed: o.Seed = 0,
    verbose: o.Verbose = False,
) -> None:
    """Talk to a model; without --base-url over a local network that ends with the chat.

    /reset forgets the conversation, /quit or Ctrl-D ends it. The id of each answer's receipt is
    shown below it. The local network has 3 nodes that share the model, or with --quorum so many
    that hold all of it each; --nodes changes how many share it.

    [bold]Examples[/]

    [cyan]unisono chat[/]

    [cyan]unisono chat --base-url http://127.0.0.1:8000 --api-key secret[/]
    """
    if base_url is None:
        from unisono.cli.child import start_servers

        start_servers()
    from unisono.cli.client import GatewayClient

    nodes = nodes or (3 if quorum is None else 1)
    copies = quorum or 1
    with ExitStack() as stack:
        if base_url is None:
            import logging

            from unisono.cli.local_network import LocalSettings, running
            from unisono.cli.preparation import prepared
            from unisono.cli.terminal import err

            stored = prepared(model or o.DEFAULT_MODEL)
            settings = LocalSettings(
                model=stored,
                nodes=nodes,
                copies=copies,
                transport=transport.value,
                log_level=logging.INFO if verbose else logging.ERROR,
            )
            with err.status(f"Starting {copies * nodes} nodes and a gateway …") as waiting:
                network = stack.enter_context(running(settings, waiting.update))
            client = stack.enter_context(GatewayClient(network.url, local=True))
            name = stored.name
        else:
            client = stack.enter_context(GatewayClient(base_url, api_key))
            name = model or _only_model(client)
        body: dict[str, Any] = {
            "model": name,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        converse(client, body if quorum is None else body | {"quorum": quorum})


def converse(client: GatewayClient, body: dict[str, Any]) -> None:
    """Read, ask, print, until the input ends. A failed answer leaves the conversation as it was.

    Raises:
        WireError: the gateway is gone.
    """
    from unisono.cli.terminal import dim, fail, out, write
    from unisono.errors import UnisonoError, WireError

    dim(f"{body['model']} at {client.url}. /reset forgets, /quit or Ctrl-D ends.")
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = out.input("[bold cyan]you[/] › ").strip()
        except EOFError:
            write("\n")
            return
        if said in ("/quit", "/exit"):
            return
        if said == "/reset":
            messages = []
            dim("The conversation is forgotten.")
            continue
        if not said:
            continue
        messages.append({"role": "user", "content": said})
        answer, receipt, verified, agreed = "", None, True, ""
        try:
            for piece in client.chat(body | {"messages": messages}):
                write(piece.text)
                answer += piece.text
                receipt = piece.receipt or receipt
                agreed = piece.quorum or agreed
                verified = verified and piece.verified
        except WireError:
            raise
        except UnisonoError as error:
            write("\n")
            fail(str(error))
            messages.pop()
            continue
        write("\n")
        messages.append({"role": "assistant", "content": answer})
        dim(f"receipt {receipt or 'missing: not every node signed in time'}")
        if agreed:
            dim(agreed)
        if not verified:
            dim("not verifiable: a fallback outside the network wrote this answer")


def _only_model(client: GatewayClient) -> str:
    from unisono.errors import WireError

    names = client.models()
    if not names:
        raise WireError(f"the gateway at {client.url} serves no model")
    return names[0]
