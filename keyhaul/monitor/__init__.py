"""What monitoring sees of a node: alive, ready and why not, and numbers. Never a key id, an SAE or a bit."""
