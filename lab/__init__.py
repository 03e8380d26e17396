"""The laboratory: how we know that erase-sd is good. Not installed; nothing imports it.

Studies, result tables, speed, faults, training and validation of the embedded model. Pages go to
`docs/measured/`, what is long goes on where it was interrupted.
"""
