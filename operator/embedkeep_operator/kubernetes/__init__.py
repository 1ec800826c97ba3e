"""Running caches on Kubernetes: the operator's process and what it decides.

The way of an event: `handlers` (kopf, as an informer) puts what it is told of into the `store` and
names the resource in the `workqueue`; a worker of `operating` takes it out and calls `reconcile`,
which looks (`reading`, `troubles`), decides (`planning`, `releases`, `rollout`), writes what is not
so already (`containment`) through `kube`, and says how it is (`conditions`). `failures` is what can
go wrong on the way, `metrics` what is counted. `process` is the command around it, with its
`settings` and its Lease (`leadership`).

What the objects look like is `embedkeep_operator.resources`; how Valkeys become one cluster,
`embedkeep_operator.topology`. Only `handlers` imports kopf. All is pure but `handlers`, `kube`,
`operating`, `process` and `reconcile`. Nothing imports this package but the `embedkeep` command.
"""
