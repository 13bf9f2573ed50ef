"""Complete programs to start one's own from; README.md says what each shows."""
