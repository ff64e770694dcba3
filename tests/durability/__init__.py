"""What is left of a store when something goes wrong at the worst moment.

``site`` is a store that a test damages and looks at, ``walk`` meets the steps by which the manager
changes the disk, ``scenarios`` are the operations that are walked, ``children`` are processes that
may be killed, and ``volumes`` are file systems that may be full.
"""
