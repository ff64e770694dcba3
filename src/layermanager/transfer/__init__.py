"""The bytes of one layer, over as many requests as that takes.

``fetcher`` reads them from any source, counted, capped and checked; ``attempts``, ``addresses`` and
``mirrors`` say whom to ask next and when, ``pace`` how fast, and ``spool`` keeps what is dear to
fetch again. It imports the values, the configuration and ``cancellation``, and no source.
"""
