"""Fast forms of what the core does readably; tests hold each equal to its reference there."""
