"""The laboratory: how we know that erase-sd is good. Not installed; nothing imports it.

Studies, result tables, speed, faults, training and validation of the embedded model. Pages go to
`docs/measured/`, what is long goes on where it was interrupted.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command has it
