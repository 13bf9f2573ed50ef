"""Complete programs to start your own from. README.md says what each of them shows."""
