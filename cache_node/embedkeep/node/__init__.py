"""A cache node: answers embedding requests from its tiers, and from an embedder where they miss.

What lives here, from the edge inwards:

- `main`, `service`: the process and the wire (gRPC in, gRPC out).
- `tenants`, `admission`: who calls, and how much of them may wait.
- `cache`, `exchange`: the path of one request through the tiers, and what is asked and answered;
  the module to read first.
- `flights`: one computation for many callers.
- `arena`, `keytable`, `eviction`: L1, the node's memory.
- `tier`, `connection`, `breaker`: the Valkey beside the node.
- `space`, `embedders`: which model the entries belong to, and the way to the processes that run it.
- `metrics`: what is counted.

Models do not live here: a node never imports what runs one. Nothing imports this package but the
command line; services use `embedkeep.Client`.
"""
