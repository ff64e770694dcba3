"""From the bytes of a layer to files in a directory, in a process of its own.

``client`` is what the manager sees: it starts one ``server`` process, which forks one ``worker`` a
layer; the worker reads the layer through ``package``, ``compression`` and ``tar`` and writes it by
``tree``, and speaks with the client in the words of ``messages``. Modules here import the standard
library, the decompressors, ``layermanager.documents``, ``errors`` and ``model``, and each other;
the worker's part imports as little as it can, since its start-up is paid for each layer.
"""
