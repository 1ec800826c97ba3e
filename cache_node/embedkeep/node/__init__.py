"""A cache node: answers embedding requests from its tiers, and from an embedder where they miss.

What lives here, from the edge inwards:

- `main`; `service` and `http`: the process, and its two ways in, gRPC and HTTP.
- `unary`: a message in, a message out, whichever way it came. `calls`, with `tenants` and
  `admission`: who calls, and how many may wait.
- `cache`, `exchange`: the path of one request through the tiers, and what is asked and answered;
  the module to read first.
- `trips`, `flights`: how keys that memory misses are answered; one computation for many callers.
- `agreement`, `forgetting`: what nodes hear of one another through Valkey, and how they tell there
  what is withdrawn.
- `memory`, `arena`, `keytable`, `eviction`: L1, the node's memory.
- `tiers`, `tier`, `commands`, `connection`, `breaker`: the Valkey beside the node.
- `shards`, `slots`: all Valkeys of a cluster as one tier; whose a key is.
- `peers`, `hops`, `hosting`: the way to the other nodes, what is asked of them, and what this node
  does for them.
- `imports`, `imports_wire`: vectors that callers bring, and the sample that is compared.
- `agreement`: what the nodes of a cache share through Valkey.
- `space`, `embedders`: which model the entries belong to, and the way to the processes that run it.
- `recorder`: what people ask for, on its way into their tenants' histories.
- `warming`, `budget`, `tuned`, `credits`: computes what plans name, what that may cost, values that
  change meanwhile, and what it has saved.
- `trace`: where in a trace a request stands. `roundtrip`: how long the way to a peer takes.
- `wire`: names of the wire in the node's own terms. `metrics`: what is counted.

Models do not live here: a node never imports what runs one. Nothing imports this package but the
command line; services use `embedkeep.Client`.
"""
