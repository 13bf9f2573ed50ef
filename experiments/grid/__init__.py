"""Many searches, each arm at its own best settings, ranked and compared: ``--help`` tells more."""
