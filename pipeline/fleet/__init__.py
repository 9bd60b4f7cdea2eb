"""Many images on many engines: which cell goes where, and a process for each.

Dagger's SDK has one connection a process, so a cell is built by a child that builds one image, as
a user would. Nothing here schedules across machines but the handing of cells to engines.
"""
