"""What can go wrong between the operator and a cluster, below the tree of `embedkeep.errors`.

ApiFailed                the API server did not do what it was asked
├── Conflict             somebody else has written it since; look again
├── Forbidden            no right to do it; names what is missing
├── Rejected             it will never be accepted as it is
├── Missing              no such kind, namespace or object
└── Unreachable          no answer, or too much asked; may pass by itself

Each is mapped once to a condition and to how soon it is tried again: see `reconcile`.
"""

from embedkeep.errors import EmbedKeepError


class ApiFailed(EmbedKeepError):
    """The API server did not do what it was asked."""

    reason = "ApiFailed"


class Conflict(ApiFailed):
    """It was written by somebody else since it was read, or is there already."""

    reason = "Conflict"


class Forbidden(ApiFailed):
    """The operator's ServiceAccount lacks a right, or a quota or a policy denies it."""

    reason = "Forbidden"


class Rejected(ApiFailed):
    """The object is not valid for this cluster."""

    reason = "Rejected"


class Missing(ApiFailed):
    """There is no such kind, namespace or object."""

    reason = "Missing"


class Unreachable(ApiFailed):
    """No answer in time, or the server is too busy."""

    reason = "Unreachable"
