"""Any number of finished runs on one page that opens offline.

``__main__`` is the command. ``runs`` reads what runs have left, ``headlines`` picks their numbers
and curves, ``overlay`` draws the curves of several runs, and ``page`` writes the page.
"""
