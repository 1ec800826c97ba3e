"""From a resource to the objects that run it on Kubernetes.

Pure: one `build_*` for each owned object, from the resource and a `Context`, as lightkube's typed
models; `build` is all of them in the order in which they are applied. Nothing here asks or tells
the API server; `embedkeep_operator.kubernetes` does. What the processes are told comes from
`embedkeep_operator.render`, as for `embedkeep up`.

`context` says what the resource does not; `names`, `ports` and `amounts` (of memory and the like)
are shared; `pods` holds what all pods have in common. The objects themselves: `nodes`, `embedder`,
`predictor`, `configs`, `services`, `policies`, `security`, `monitoring`,
`dashboard`; `objects` puts them in order.

The one object that is not among those of `build` is the Secret of `security.build_auth`: what
stands in it is random, so it is created once and never applied.
"""

from embedkeep_operator.resources.context import Context, Images, Pods
from embedkeep_operator.resources.objects import OWNED, Missing, build, missing
from embedkeep_operator.resources.security import auth_of, build_auth, required_secrets

__all__ = [
    "OWNED",
    "Context",
    "Images",
    "Missing",
    "Pods",
    "auth_of",
    "build",
    "build_auth",
    "missing",
    "required_secrets",
]
