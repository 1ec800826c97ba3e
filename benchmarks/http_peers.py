"""The OpenAI endpoint beside LiteLLM's proxy and beside nginx, all caching the same upstream.

    make .venv-peers/ready; apt-get install nginx-light
    .venv-peers/bin/python benchmarks/http_peers.py [--quick]

One client library for all: http.client with a kept connection, in a process of its own, and orjson.
LiteLLM's proxy caches in the same Valkey as embedkeep. nginx keeps whole answers by the request's
body, so every client asks for the same few batches again and again: the case that nginx can answer.
What each does when the same texts come in other batches is counted afterwards.

Writes benchmarks/results/http_peers.json and its tables in docs/benchmarks.md.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import yaml

from embedkeep_operator.local.replay import sample
from report import COMMITTED, draft, made_on, table
from rig import DidNotStart, Node, Rig, Upstream, Valkey, free_port
from systems import Http
from turns import Compared, Entrant, Plan, arguments, compare, row_cells, say
from upstream import MODEL

DIMS: Final = 384
TEXTS: Final = 1024
ENCODINGS: Final = ("float", "base64")
PLAN: Final = Plan(batches=(1, 8, 32, 128), clients=(1, 16), rounds=3, seconds=0.4, fixed=True)
QUICK: Final = Plan(batches=(1, 32), clients=(1, 4), rounds=1, seconds=0.1, fixed=True)
PROXY_KEY: Final = "sk-bench"

NGINX: Final = """
daemon off;
user root;
worker_processes auto;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=embeddings:64m inactive=1d use_temp_path=off;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 100000000;
    client_body_buffer_size 4m;
    client_max_body_size 4m;
    proxy_buffer_size 128k;  # a cached answer's key, which holds the body, must fit
    proxy_buffers 8 128k;
    location = /health {{ return 200; }}
    location / {{
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_cache embeddings;
      proxy_cache_methods POST;
      proxy_cache_key "$request_uri $request_body";
      proxy_cache_valid 200 1d;
      proxy_cache_lock on;
    }}
  }}
}}
"""


def embedkeep(node: Node, tier: str) -> list[Entrant]:
    """The node's own endpoint."""
    if "http" not in node.announced:
        raise DidNotStart("this node serves no HTTP")
    return _entrants("embedkeep", tier, node.announced["http"], model="bench")


def litellm_proxy(rig: Rig, upstream: Upstream, valkey: Valkey) -> list[Entrant]:
    """LiteLLM's proxy, with one worker as its documentation advises for a core."""
    port = free_port()
    file = rig.folder / "litellm.yaml"
    told = {"model": f"openai/{MODEL}", "api_base": upstream.openai, "api_key": "none"}
    cache = {"type": "redis", "host": "127.0.0.1", "port": valkey.port}
    settings = {"cache": True, "cache_params": cache, "telemetry": False}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": told}],
        "litellm_settings": settings,
        "general_settings": {"master_key": PROXY_KEY},
    }
    file.write_text(yaml.safe_dump(config))
    program = Path(sys.executable).with_name("litellm")
    where = ("--host", "127.0.0.1", "--port", str(port))
    command = (program, "--config", file, *where, "--telemetry", "False")
    rig.serve_http("litellm", port, command, path="/health/liveliness")
    return _entrants("LiteLLM proxy", "its memory, Valkey", port, model=MODEL)


def nginx(rig: Rig, upstream: Upstream) -> list[Entrant]:
    """nginx, keeping answers on disk, which the kernel keeps in memory."""
    if (binary := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")) is None:
        raise DidNotStart("nginx is not installed: apt-get install nginx-light")
    port, folder = free_port(), rig.folder / "nginx"
    folder.mkdir()
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, port=port, upstream=upstream.http_port))
    rig.serve_http("nginx", port, [binary, "-p", folder, "-c", file], path="/health")
    return _entrants("nginx", "whole answers", port, model=MODEL)


def _entrants(system: str, tier: str, port: int, *, model: str) -> list[Entrant]:
    opener = partial(Http, port, model=model, key=PROXY_KEY)
    return [
        Entrant(f"{system}, {encoding}", tier, partial(opener, encoding=encoding))
        for encoding in ENCODINGS
    ]


def recomposed(entrants: Sequence[Entrant], upstream: Upstream, texts: Sequence[str]) -> Iterator[
    tuple[Entrant, int, int]
]:  # fmt: skip
    """Texts asked of the model when known texts come in batches of 32 that were not seen before."""
    for entrant in entrants:
        system = entrant.opener()
        upstream.reset()
        batches = [list(texts[at::8][:32]) for at in range(8)]
        try:
            for batch in batches:
                system.ask(batch)
        except OSError as error:
            say(f"left out: {entrant.name}: {error}")
        else:
            yield entrant, sum(map(len, batches)), upstream.texts()
        finally:
            system.close()


def started(rig: Rig, upstream: Upstream, valkey: Valkey) -> tuple[list[Entrant], dict[str, str]]:
    """All that can be started here, and why the others cannot."""
    node = partial(rig.node, upstream.grpc_port, valkey, http={"port": 0})
    ways: dict[str, Callable[[], list[Entrant]]] = {
        "embedkeep, L1": lambda: embedkeep(node(), "L1"),
        "embedkeep, Valkey": lambda: embedkeep(node(l1_bytes=0), "Valkey"),
        "LiteLLM proxy": lambda: litellm_proxy(rig, upstream, valkey),
        "nginx": lambda: nginx(rig, upstream),
    }
    entrants: list[Entrant] = []
    left_out: dict[str, str] = {}
    for name, way in ways.items():
        say(f"starting {name}")
        try:
            entrants += way()
        except (DidNotStart, OSError, subprocess.SubprocessError) as error:
            left_out[name] = str(error)
            say(f"left out: {name}: {error}")
    return entrants, left_out


def main() -> None:
    """Measure, keep, and print."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    texts = list(dict.fromkeys(sample()))[:TEXTS]
    with Rig() as rig:
        valkey, upstream = rig.valkey(), rig.upstream(dims=DIMS)
        entrants, left_out = started(rig, upstream, valkey)
        compared = (
            compare(entrants, upstream, texts, QUICK if quick else PLAN) if entrants else Compared()
        )
        compared.left_out |= left_out
        taking_part = [each for each in entrants if each.name not in compared.left_out]
        counted = list(recomposed(taking_part, upstream, texts))
        server = valkey.described()
    asked = [
        {"system": each.system, "tier": each.tier, "texts": texts, "asked_of_the_model": asked}
        for each, texts, asked in counted
    ]
    place.save(
        "http_peers",
        server,
        rows=[asdict(row) for row in compared.rows],
        recomposed=asked,
        left_out=compared.left_out,
    )
    counts = table(
        ("system", "tier", "known texts, in other batches", "of them asked of the model"),
        ([str(value) for value in row.values()] for row in asked),
    )
    text = f"{row_cells(compared)}\n\n{made_on(server)}\n\n{counts}"
    place.write("http_peers", text)
    print(text)


if __name__ == "__main__":
    main()
