"""What a person sees when the input is bad: one sentence, no traceback."""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags


class UserError(Exception):
    """The input is bad. The message says what is wrong, where, and what to do, in one sentence."""


def run(main: Callable[[Sequence[str]], object]) -> None:
    """Runs an absl `main`; a `UserError` becomes one line on stderr and exit status 1.

    Ctrl-C becomes exit status 130: finished stages are on disk, and a rerun goes on from them.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
        # Orbax tells of every checkpoint in twenty lines, through absl's own logger.
        if not flags.FLAGS["verbosity"].present:
            logging.getLogger("absl").setLevel(logging.WARNING)
        try:
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted: run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    # absl lets information through, and JAX informs of every accelerator that is not there.
    logging.getLogger("jax").setLevel(logging.WARNING)
    app.run(guarded)
