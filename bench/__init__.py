"""How much layermanager costs, measured against its peers on the machine at hand: ``make bench``.

Each benchmark is a function that takes a ``Setting`` and returns ``Figure`` values; ``__main__``
names them all. Nothing here passes or fails: the table shows the goal beside the figure, and a
person judges, who also knows what else the machine was doing.
"""
