"""Links make pads between two neighbouring nodes: from QKD devices, from ML-KEM, or from both."""
