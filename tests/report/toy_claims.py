"""What processes of a test measure in the place of the ledger's claims; in a module, so that they can import it."""

import os

from refattn.report import Measurement


def found_by_id(name, quick):
    """Find 1, in this process; two of the names do not come back."""
    if name == "kills":
        os._exit(3)
    if name == "cannot be sent":
        return lambda: None
    return Measurement(f"process {os.getpid()}", 1.0, at_most=1.0), "", False, 0.0
