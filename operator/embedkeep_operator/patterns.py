"""What the resource's patterns ask for, in words: nobody should have to read an expression."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from embedkeep.runs import NAME, NAME_RULE

IN_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        NAME: NAME_RULE,
        r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": (
            "lower-case letters, digits and -, beginning and ending with a letter or digit"
        ),
        r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$": (
            "lower-case letters, digits, - and ., beginning and ending with a letter or digit"
        ),
        r"^[-._a-zA-Z0-9]{1,253}$": "letters, digits, -, _ and .",
        r"^[A-Za-z0-9][-A-Za-z0-9._/]*$": (
            "letters, digits, -, _, . and /, beginning with a letter or digit"
        ),
        r"^[-A-Za-z0-9._/]+$": "letters, digits, -, _, . and /",
        r"^[A-Za-z_][A-Za-z0-9_.]*$": "a Python package's import name",
        r"^/": "a path that begins with /",
        r"^https?://[^\s/@?#]+(/[^\s?#]*)?(\?[^\s#]*)?$": (
            "a URL with http:// or https://, without credentials (see secretRef) and without #"
        ),
        r"^[A-Za-z_][A-Za-z0-9_]*$": (
            "an environment variable's name: letters, digits and _, not beginning with a digit"
        ),
        r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$": "a device's name such as nvidia.com/gpu",
        r"^\S+\s+\S+\s+\S+\s+\S+\s+\S+$": (
            'five fields, as of cron: minute, hour, day, month, weekday: "*/30 * * * *"'
        ),
        r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$": (
            "letters, digits, -, _ and ., beginning and ending with a letter or digit"
        ),
        r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$": "an amount such as 500m, 2 or 1Gi",
        r"^[-._a-zA-Z][-._a-zA-Z0-9]*$": "letters, digits, -, _ and ., not beginning with a digit",
    }
)
