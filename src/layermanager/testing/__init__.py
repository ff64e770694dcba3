"""Public helpers for the tests of this package and of programs that embed it.

There are clocks that move when told, builders of layers, in-memory storage and space, and servers
on loopback that answer by a script. They are fakes that keep the contracts of
``layermanager.protocols``, not mocks; the conformance suites of the tests hold them to that.
"""
