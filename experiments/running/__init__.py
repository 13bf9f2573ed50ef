"""What every script shares: its command line, progress, result files, processes, and many runs."""
