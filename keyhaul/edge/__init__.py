"""The ports a node opens to the world: TLS, the 014 port for SAEs, the port for nodes, the admin port."""
