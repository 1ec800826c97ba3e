"""Somebody else's embedder, asked over HTTP, in the place of a model that runs here.

What to send and how to read it lives in `wires` (OpenAI and TEI), what a refusal means in
`failures`, when requests may be made in `pace`, which texts go into the next one and what becomes
of it in `policy`: all of these are pure. Around them stand `http` (connections), `calls` (callers
on one side, requests on the other), `looking` (whether it is the same model still), `service` and
`metrics`. The key's own module is `key`.

Everything that models need is left out: the base installation can run it. Called by
`embedkeep.embedder.main` and tests.
"""
