"""The control plane: what an `EmbeddingCache` asks for, and what runs it.

Here live the resource's types (`api`, its parts `api_*`, `fields`, `patterns`), the CRD made from
them (`crd`), reading and checking a file (`manifest`, `unbuilt`), what each process is told
(`render`, `render_valkey`, `render_warming`), making several Valkeys one cluster (`topology`
decides, `valkeys` asks and does, `slots` counts), running a cache on one machine (`local`), and the
objects that run one on Kubernetes (`resources`). What applies them there is not built yet.

What answers calls and computes vectors is `embedkeep`, the data plane: nothing there imports this
package, except that the `embedkeep` command loads `up` and `status` by name. From the data plane
this package takes what it renders (`embedkeep.config`) and what any user would import; never
`embedkeep.node` or `embedkeep.embedder`.
"""
