"""embedkeep's data plane and client: an embedding cache that answers repeats bit for bit.

What most services import is here: `Client`, `AsyncClient` and the errors they raise. Beside it
live the node (`embedkeep.node`), the embedder (`embedkeep.embedder`), what both are told
(`embedkeep.config`), the wire (`embedkeep.v1`) and the command (`embedkeep.cli`). What runs on
Kubernetes' side lives in `embedkeep_operator`, which nothing here imports.
"""
