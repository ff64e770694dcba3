"""Layers and packages made to do harm, each with what has to come of it.

``cases`` says what a case is and ``world`` runs one and looks at what it did; the other modules
are tables of cases by what they attack, and ``corpus`` is all of them. ``make fuzz`` begins with
them too.
"""
