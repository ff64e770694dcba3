"""Who uses installed layers, and using them: leases, mounts, bundles.

``layer_use`` is what the manager sees: it takes leases and makes mounts by name; ``in_use`` finds
who has layers mounted, by the mount tables of all processes (``namespaces``, ``mountinfo``);
``overlay`` mounts, ``bundle`` makes an image ready for a runtime. It imports the storage, the
values and ``linux``, and knows nothing of how layers come or go.
"""
