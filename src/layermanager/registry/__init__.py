"""Registries, by the OCI distribution specification 1.1.

``client`` sends requests and logs in where it is asked to; ``source`` fetches images from there and
``upload`` puts them there. What registries know of a login, ``challenge`` reads from their answers
and ``logins`` from the files in which users keep theirs.
"""
