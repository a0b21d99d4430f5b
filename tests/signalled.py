"""`regard`, sending a signal to itself when it has saved step STEP or one after it: a test need not race with the run.

`python signalled.py SIGTERM STEP pretrain ...`; Lightning starts further processes by running this file again, and the
first one gets the signal.
"""

import os
import signal
import sys

from regard.cli import main
from regard.training.stopping import Checkpoints


class Signalled(Checkpoints):
    """Tells itself to stop, or is killed, right after it has saved."""

    def _save_checkpoint(self, trainer, filepath) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero and trainer.global_step >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.Signals[sys.argv[1]])


if __name__ == "__main__":
    import regard.training.trainer

    regard.training.trainer.Checkpoints = Signalled
    main(sys.argv[3:])
