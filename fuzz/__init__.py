"""Coverage-guided fuzzing of all that parses what strangers wrote: ``make fuzz``.

The targets, what they assert and the inputs to begin with are those of ``tests/hostile``. What
a run finds is below ``.cache/fuzz/TARGET``: ``corpus`` holds the inputs that reached something new,
from which the next run goes on; a file ``crash-…``, ``timeout-…`` or ``oom-…`` is an input that a
target could not stand. Such a one becomes a case of ``tests/hostile``, and then is mended.
"""
