"""The `embedkeep` command begins here, as does `python -m embedkeep`.

Ctrl-C while the command's own modules are still being loaded ends it as it ends any program, by
the signal (which shells report as 130), and not with a traceback. `embedkeep.cli.main` takes over
once it can answer for it.
"""

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command, and exit."""
    # Who started us may want it ignored, as `nohup` and shells without job control do.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getpid() == 1:
        # The kernel ends the first process by no signal that it leaves to the default.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    from embedkeep.cli import main as run  # noqa: PLC0415  # the loading that is meant

    run()


if __name__ == "__main__":
    main()
