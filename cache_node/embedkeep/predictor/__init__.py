"""The predictor: reads what a cache was asked for, and plans what to compute ahead of time.

- `popularity`: which texts are worth it, as a pure function of the history and the clock.
- `main`: one run: reads each tenant's history, writes its plan, and ends. A schedule starts it.

How history and plans lie in Valkey is said in `embedkeep.history` and `embedkeep.plans`, which the
nodes share; when a plan is carried out, and what it may cost, is theirs (`embedkeep.node.warming`).
Nothing here computes a vector, and nothing but the command line imports this package. It borrows
the node's connection to Valkey and how it reads the cache's secret, and nothing else of it.
"""
