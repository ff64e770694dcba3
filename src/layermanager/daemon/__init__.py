"""The daemon: the library over HTTP, for an orchestrator, a monitoring system and a browser.

::

    listeners ──► server (a thread a connection) ──► api: route, validate ──► resources
                                                                                 │
              events ◄── operations (a thread of their own) ◄── node ◄───────────┤ changes
              metrics ◄─ the library's observer                                  │
                                         inventory: no lock, nobody waits ◄──────┘ reads

``endpoints`` lists what there is to ask for, once: requests are routed and checked by that list,
and the OpenAPI document is made of it. A further resource is a module in ``resources`` with its
handlers, its endpoints and its schemas.
"""
