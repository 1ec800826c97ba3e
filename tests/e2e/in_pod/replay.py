"""Runs in a pod: asks a cache the demo's real questions, and says where answers came from.

Told: target, api_key_file, ca_file, texts (whose vectors are wanted).
Says: texts by source, device-seconds saved, and the vectors' bytes in base64.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

from embedkeep import AsyncClient
from embedkeep.config import ClientTls
from embedkeep_operator.local.replay import replay, sample


async def main() -> None:
    """Ask, then say."""
    told = json.loads(sys.argv[1])
    async with AsyncClient(
        told["target"],
        api_key=Path(told["api_key_file"]),
        tls=ClientTls(ca_file=told["ca_file"]),
    ) as cache:
        tally = await replay(cache, sample(), on_answer=lambda _: None)
        vectors = await cache.embed(told["texts"])
    said = {
        "texts": {str(source): count for source, count in tally.texts.items()},
        "saved_device_s": tally.saved_device_s,
        "vectors": base64.b64encode(vectors.tobytes()).decode(),
    }
    sys.stdout.write(json.dumps(said) + "\n")


asyncio.run(main())
