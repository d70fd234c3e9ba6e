"""What a new machine can do, part by part, each in a process of its own: the parts behind launch/acceptance.py.

A part is a generator of rows (plain dicts). A row is on the disk before the next begins, so whatever ends a part, what it found
is kept. `run.PARTS` names the parts, in order, with the minutes that each may take.
"""
