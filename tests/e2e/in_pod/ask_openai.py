"""Runs in a pod: asks a cache as OpenAI's clients do, with nothing but the standard library.

Told: url, model, texts. Says: the vectors' bytes in base64, and the header that tells of the cache.
"""

import base64
import json
import sys
from urllib.request import Request, urlopen

told = json.loads(sys.argv[1])
body = {"model": told["model"], "input": told["texts"], "encoding_format": "base64"}
request = Request(  # noqa: S310 - http, to a service of the test's own
    f"{told['url']}/v1/embeddings",
    json.dumps(body).encode(),
    {"content-type": "application/json", "authorization": "Bearer unused"},
)
with urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
    rows = json.load(answer)["data"]
    status = answer.headers["cache-status"]

vectors = b"".join(base64.b64decode(row["embedding"]) for row in rows)
said = {"vectors": base64.b64encode(vectors).decode(), "cache_status": status}
sys.stdout.write(json.dumps(said) + "\n")
