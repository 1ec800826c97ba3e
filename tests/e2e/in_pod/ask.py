"""Runs in a pod: asks a cache by the client, and says what came.

Told: target, texts, times (how often to ask), and perhaps api_key_file and ca_file.
Says: for each time, where each row came from, and the vectors' bytes in base64.
"""

import base64
import json
import sys
from pathlib import Path

from embedkeep import Client
from embedkeep.client.options import ClientOptions
from embedkeep.config import ClientTls

told = json.loads(sys.argv[1])
options = ClientOptions()
if "api_key_file" in told:
    options["api_key"] = Path(told["api_key_file"])
if "ca_file" in told:
    options["tls"] = ClientTls(ca_file=told["ca_file"])

with Client(told["target"], **options) as cache:
    answers = [cache.embed_detailed(told["texts"]) for _ in range(told.get("times", 1))]
for answer in answers:
    answer.raise_failures()

said = [
    {
        "sources": list(answer.sources),
        "vectors": base64.b64encode(answer.vectors.tobytes()).decode(),
    }
    for answer in answers
]
sys.stdout.write(json.dumps(said) + "\n")
