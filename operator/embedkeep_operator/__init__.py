"""The control plane: what an `EmbeddingCache` asks for, and what runs it.

Here live the resource's types (`api`, its parts `api_*`, `fields`, `patterns`, `cron`), the CRD
made from them (`crd`), reading and checking a file (`manifest`, `unbuilt`), what each process is
told (`render`, `render_valkey`, `render_warming`), and making several Valkeys one cluster
(`topology` decides, `valkeys` asks and does, `forming` puts the two together, `slots` counts,
`cluster` holds what they see, `rotation` gives them other passwords). `counts` reads what processes
have counted. A cache runs on one machine (`local`), or on Kubernetes: as the objects of
`resources`, kept so by `kubernetes`; `kubectl` is what people look at it with.

What answers calls and computes vectors is `embedkeep`, the data plane: nothing there imports this
package, except that the `embedkeep` command loads `up`, `status` and `operator` by name. From the
data plane this package takes what it renders (`embedkeep.config`) and what any user would import;
never `embedkeep.node` or `embedkeep.embedder`.
"""
