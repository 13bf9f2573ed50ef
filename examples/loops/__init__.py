"""Two common training loops, and diffs that add plasticity to each in three lines."""
