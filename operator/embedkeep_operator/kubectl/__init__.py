"""`kubectl embedkeep`: looks at EmbeddingCaches in a cluster, and changes nothing.

`command` is the command line, `reading` asks kubectl, and what they do between is pure: `tree`
puts owned objects in their order and says how each is doing, `report` puts that beside the cache's
own status and what its processes count, `showing` makes it text; `redaction` and `bundle` make the
files of a bug report.

It asks `kubectl` instead of the API server: a plugin has it at hand, with whatever credentials,
proxies and contexts the user is used to, and needs nothing more installed than the client does.

Nothing imports this package but the entry point `kubectl-embedkeep` and tests.
"""
