"""UniGenBench++: a judge is asked about each testpoint of a prompt; what it grants is counted by dimension.

``benchmark`` reads the prompts, ``wording`` asks, ``answers`` reads what was said, ``counts`` adds it up, ``journal``
keeps it, ``report`` writes it, and ``evaluate`` does all of it in order.
"""
