"""Training loops as people write them, and diffs that add plasticity to them in three lines."""
